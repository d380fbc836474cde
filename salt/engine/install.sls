{# The engine's own virtual environment; which one is data of the profile's accelerator. #}
{% set engine = pillar['engine'] %}
{% if engine['packages'] %}
engine-install-packages-pkg-installed:
  pkg.installed:
    - pkgs: {{ engine['packages'] | json }}
    - refresh: false
    - require_in:
      - engine: engine-install-environment-engine-installed
{% endif %}

{% if engine['lock'] %}
engine-install-lock-file-managed:
  file.managed:
    - name: /etc/cluster/engine-requirements.txt
    - source: salt://engine/files/{{ engine['lock'] }}
    - makedirs: true
    - mode: '0644'

engine-install-environment-engine-installed:
  engine.installed:
    - name: {{ engine['directory'] | json }}
    - requirements: /etc/cluster/engine-requirements.txt
    - engine: {{ engine | json }}
    - require:
      - file: engine-install-lock-file-managed
{% else %}
{# The engine map says what is missing; a node without an engine is better named than half installed. #}
engine-install-environment-engine-installed:
  engine.unavailable:
    - name: {{ engine['directory'] | json }}
    - reason: {{ engine['untested'] | json }}
{% endif %}
