sampler-service-sampler-telemetry-running:
  telemetry.running:
    - name: /etc/cluster/sampler.json
    - watch:
      - file: sampler-install-program-file-recurse
      - file: sampler-config-file-serialize
