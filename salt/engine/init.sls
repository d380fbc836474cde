include:
  - engine.install
  - engine.programs
  - engine.config
