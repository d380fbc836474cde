{# A node has fallen silent: its sampler and the deployment are looked after, if the event is the control node's own. #}
reactor-node-lost-internal-take:
  runner.internal.take:
    - args:
      - tag: {{ tag | json }}
      - event: {{ data | json }}
