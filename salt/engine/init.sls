include:
  - engine.install
  - engine.config
