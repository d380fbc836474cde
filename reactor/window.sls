{# A window of samples is complete: make it into a ledger and a verdict. #}
reactor-window-telemetry-aggregate:
  runner.telemetry.aggregate:
    - args:
      - window: {{ data | json }}
