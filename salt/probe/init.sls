{# Placed, not started: probes run when `cluster probe` asks for them. #}
probe-init-packages-pkg-installed:
  pkg.installed:
    - pkgs: [iperf3]
    - refresh: false

probe-init-scripts-file-recurse:
  file.recurse:
    - name: /opt/cluster/probe
    - source: salt://probe/files
    - include_pat: '*.py'
    - clean: true
    - dir_mode: '0755'
    - file_mode: '0644'
    - makedirs: true
