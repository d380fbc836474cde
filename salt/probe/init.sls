{# Placed, not started: probes run when `cluster probe` asks for them. #}
probe-init-packages-pkg-installed:
  pkg.installed:
    - pkgs: [iperf3]
    - refresh: false
    # A machine may have it in another way than as a package, as one that nothing can be fetched on.
    - unless: command -v iperf3

probe-init-scripts-file-recurse:
  file.recurse:
    - name: /opt/cluster/probe
    - source: salt://probe/files
    - include_pat: '*.py'
    - clean: true
    - dir_mode: '0755'
    - file_mode: '0644'
    - makedirs: true
