{# Not in top.sls: applied on demand, `salt '*' state.apply deployment pillar='{"deployment": "tp2"}'`. #}
{% set spec = pillar['deployments'].get(pillar.get('deployment', pillar['default_deployment'])) %}
{% if spec %}
deployment-init-worker-vllm-running:
  vllm.running:
    - name: {{ spec['name'] | json }}
    - worker: {{ spec | json }}
    - engine: {{ pillar['engine'] | json }}
{% endif %}
