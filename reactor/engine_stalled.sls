{# An engine has requests and makes nothing: the deployment is looked at, if the event is our own. #}
reactor-engine-stalled-internal-take:
  runner.internal.take:
    - args:
      - tag: {{ tag | json }}
      - event: {{ data | json }}
