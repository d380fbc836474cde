{# A node has fallen silent: its sampler is started again where its minion answers, and the deployment is looked at. #}
reactor-node-lost-recover-node-lost:
  runner.recover.node_lost:
    - args:
      - node: {{ data['node'] | json }}
