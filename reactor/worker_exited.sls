{# A process of a worker ended: the deployment is looked at, if the event is the control node's own. #}
reactor-worker-exited-internal-take:
  runner.internal.take:
    - args:
      - tag: {{ tag | json }}
      - event: {{ data | json }}
