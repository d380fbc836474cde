{# Salt's master with its engines: samples, boot service. Its keys are made here at its first start and stay here. #}
control-master-configuration-file-serialize:
  file.serialize:
    - name: /etc/salt/master
    - dataset_pillar: control:master
    - serializer: yaml
    - mode: '0600'
    - require:
      - file: control-install-directory-etc-salt-file-directory

control-master-pki-file-directory:
  file.directory:
    - name: /etc/salt/pki/master
    - mode: '0700'
    - makedirs: True

control-master-unit-file-managed:
  file.managed:
    - name: /etc/systemd/system/salt-master.service
    - source: salt://control/files/salt-master.service
    - template: jinja
    - mode: '0644'

control-master-service-service-running:
  service.running:
    - name: salt-master
    - enable: True
    - require:
      - service: control-interface-service-service-running
    - watch:
      - file: control-master-configuration-file-serialize
      - file: control-master-unit-file-managed
