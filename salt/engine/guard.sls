{# Ports without authentication by which one node serves another. #}
{% if pillar['guards'] %}
engine-guard-ports-engine-guarded:
  engine.guarded:
    - name: peers
    - guards: {{ pillar['guards'] | json }}
    - require:
      - sls: engine.install
{% endif %}
