{# Placed, not started: probes run when `cluster probe` asks for them. #}
probe-init-packages-pkg-installed:
  pkg.installed:
    - pkgs: [iperf3]
    - refresh: false

probe-init-script-file-managed:
  file.managed:
    - name: /opt/cluster/probe/probe.py
    - source: salt://probe/files/probe.py
    - makedirs: true
    - mode: '0644'
