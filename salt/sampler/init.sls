include:
  - sampler.install
  - sampler.config
  - sampler.service
