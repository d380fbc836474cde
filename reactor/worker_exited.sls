{# A process of a worker ended: look at the deployment, whatever the event says, and bring it back if it does not serve. #}
reactor-worker-exited-recover-worker-exited:
  runner.recover.worker_exited:
    - args:
      - node: {{ data['node'] | json }}
      - workers: {{ data['workers'] | json }}
