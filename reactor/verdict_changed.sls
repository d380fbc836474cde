{# The bottleneck is another one than in the window before: note it. #}
reactor-verdict-changed-perf-verdict-changed:
  runner.perf.verdict_changed:
    - args:
      - change: {{ data | json }}
