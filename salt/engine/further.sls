{# Engines that deployments name beside that of the accelerator: installed when one of those is deployed. #}
{% from 'engine/states.jinja' import engine_states %}
include:
  - engine.guard

{% for engine in pillar['engines'] %}
{{ engine_states(engine, 'engine-further-' ~ engine['kind'], '/etc/cluster/engine-requirements-' ~ engine['kind'] ~ '.txt') }}
{% endfor %}
