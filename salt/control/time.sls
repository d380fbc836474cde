{# The nodes take their time from the control node: spans of one trace must agree. #}
control-time-configuration-file-managed:
  file.managed:
    - name: /etc/chrony/conf.d/cluster.conf
    - source: salt://control/files/chrony.conf
    - template: jinja
    - mode: '0644'
    - require:
      - pkg: control-install-packages-pkg-installed

control-time-service-service-running:
  service.running:
    - name: chrony
    - enable: True
    - watch:
      - file: control-time-configuration-file-managed
