engine-config-current-file-symlink:
  file.symlink:
    - name: /opt/cluster/engine
    - target: {{ pillar['engine']['directory'] | json }}
    - makedirs: true
    - require:
      - engine: engine-install-environment-engine-installed
