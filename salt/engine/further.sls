{# Engines that deployments name beside that of the accelerator: installed when one of those is deployed. The link says
   that this very node was configured for one; the folder that it leads to may be another node's work, too. #}
{% from 'engine/states.jinja' import engine_states %}
{% for engine in pillar['engines'] %}
{% set prefix = 'engine-further-' ~ engine['kind'] %}
{{ engine_states(engine, prefix, '/etc/cluster/engine-requirements-' ~ engine['kind'] ~ '.txt') }}

{{ prefix }}-current-file-symlink:
  file.symlink:
    - name: /opt/cluster/further-engines/{{ engine['kind'] }}
    - target: {{ engine['directory'] | json }}
    - makedirs: true
    - require:
      - engine: {{ prefix }}-environment-engine-installed
{% endfor %}
