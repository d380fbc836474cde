{# The node's engine, and those that deployments name beside it; what they are is data of the engine map. #}
{% for engine in [pillar['engine']] + pillar['engines'] %}
{% set name = 'environment' if loop.first else engine['kind'] %}
{% if engine['packages'] %}
engine-install-{{ 'packages' if loop.first else name ~ '-packages' }}-pkg-installed:
  pkg.installed:
    - pkgs: {{ engine['packages'] | json }}
    - refresh: false
    - require_in:
      - engine: engine-install-{{ name }}-engine-installed
{% endif %}

{% if engine['lock'] %}
{% set lock = '/etc/cluster/engine-requirements.txt' if loop.first else '/etc/cluster/engine-requirements-' ~ name ~ '.txt' %}
engine-install-{{ 'lock' if loop.first else name ~ '-lock' }}-file-managed:
  file.managed:
    - name: {{ lock }}
    - source: salt://engine/files/{{ engine['lock'] }}
    - makedirs: true
    - mode: '0644'

engine-install-{{ name }}-engine-installed:
  engine.installed:
    - name: {{ engine['directory'] | json }}
    - requirements: {{ lock }}
    - engine: {{ engine | json }}
    - require:
      - file: engine-install-{{ 'lock' if loop.first else name ~ '-lock' }}-file-managed
{% elif engine.get('root_folder') %}
engine-install-{{ name }}-engine-installed:
  engine.installed:
    - name: {{ engine['directory'] | json }}
    - requirements: null
    - engine: {{ engine | json }}
{% else %}
{# The engine map says what is missing; a node without an engine is better named than half installed. #}
engine-install-{{ name }}-engine-installed:
  engine.unavailable:
    - name: {{ engine['directory'] | json }}
    - reason: {{ engine['untested'] | json }}
{% endif %}
{% endfor %}
