include:
  - engine.install
  - engine.config
  - engine.guard
