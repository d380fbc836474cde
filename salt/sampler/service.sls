sampler-service-sampler-perf-running:
  perf.running:
    - name: /etc/cluster/sampler.json
    - watch:
      - file: sampler-install-program-file-recurse
      - file: sampler-config-file-serialize
