sampler-install-program-file-recurse:
  file.recurse:
    - name: /opt/cluster/sampler
    - source: salt://sampler/files
    - include_pat: '*.py'
    - clean: true
    - dir_mode: '0755'
    - file_mode: '0644'
    - makedirs: true
