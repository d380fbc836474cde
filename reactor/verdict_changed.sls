{# The bottleneck is another one than in the window before: note it. #}
reactor-verdict-changed-telemetry-verdict-changed:
  runner.telemetry.verdict_changed:
    - args:
      - change: {{ data | json }}
