{# A node's minion is up: configure the node. Never a key: any minion can send this event under any name. #}
reactor-node-start-cluster-node-started:
  runner.cluster.node_started:
    - args:
      - minion: {{ data['id'] | json }}
