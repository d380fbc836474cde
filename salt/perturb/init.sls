{# The programs of the experiment that slows a resource. Placed, not started: `perturb` does that. #}
perturb-init-programs-file-recurse:
  file.recurse:
    - name: /opt/cluster/perturb
    - source: salt://perturb/files
    - include_pat: '*.py'
    - clean: true
    - dir_mode: '0755'
    - file_mode: '0644'
    - makedirs: true
