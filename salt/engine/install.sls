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
