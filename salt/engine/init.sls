include:
  - engine.user
  - engine.install
  - engine.programs
  - engine.config
