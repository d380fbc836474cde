base:
  '*':
    - base
    - network
    - engine
    - model
    - perturb
    - probe
    - sampler
