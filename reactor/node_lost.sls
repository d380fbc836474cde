{# A node has fallen silent: if its minion still answers, its sampler is started again. #}
reactor-node-lost-telemetry-revive:
  runner.telemetry.revive:
    - args:
      - node: {{ data['node'] | json }}
