{# What is logged is bounded: a log that nobody looks at must not fill the disk. #}
control-logs-rotation-file-managed:
  file.managed:
    - name: /etc/logrotate.d/cluster
    - source: salt://control/files/logrotate.conf
    - mode: '0644'
    - require:
      - pkg: control-install-packages-pkg-installed
