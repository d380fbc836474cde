{# A window of samples is complete: make it into a ledger and a verdict. #}
reactor-window-perf-aggregate:
  runner.perf.aggregate:
    - args:
      - window: {{ data | json }}
