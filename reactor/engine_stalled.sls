{# An engine has requests and makes nothing: look at the deployment, and bring it back if it does not serve. #}
reactor-engine-stalled-recover-engine-stalled:
  runner.recover.engine_stalled:
    - args:
      - node: {{ data['node'] | json }}
      - seconds: {{ data['seconds'] | json }}
