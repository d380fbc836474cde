base:
  '*':
    - base
    - network
    - engine
    - model
    - probe
    - sampler
