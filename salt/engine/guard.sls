{# Ports without authentication by which one node serves another. #}
{% if pillar['guards'] %}
engine-guard-packages-pkg-installed:
  pkg.installed:
    - pkgs: [nftables]
    - refresh: false

engine-guard-ports-engine-guarded:
  engine.guarded:
    - name: peers
    - guards: {{ pillar['guards'] | json }}
    - require:
      - pkg: engine-guard-packages-pkg-installed
{% endif %}
