{# The cluster's one interface gets its addresses whenever it appears: it may be a USB adapter. #}
control-interface-unit-file-managed:
  file.managed:
    - name: /etc/systemd/system/cluster-interface.service
    - source: salt://control/files/cluster-interface.service
    - template: jinja
    - mode: '0644'

control-interface-service-service-running:
  service.running:
    - name: cluster-interface
    - enable: True
    - watch:
      - file: control-interface-unit-file-managed
