{# A window of samples is complete: it becomes a ledger and a verdict, if the event is the control node's own. #}
reactor-window-internal-take:
  runner.internal.take:
    - args:
      - tag: {{ tag | json }}
      - event: {{ data | json }}
