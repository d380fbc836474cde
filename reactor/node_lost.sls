{# A node has fallen silent: if its minion still answers, its sampler is started again. #}
reactor-node-lost-perf-revive:
  runner.perf.revive:
    - args:
      - node: {{ data['node'] | json }}
