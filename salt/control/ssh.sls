{# A laptop that is gone is noticed within 15 s, so what it ran here ends. #}
control-ssh-configuration-file-managed:
  file.managed:
    - name: /etc/ssh/sshd_config.d/50-cluster.conf
    - source: salt://control/files/sshd.conf
    - mode: '0644'

control-ssh-service-service-running:
  service.running:
    - name: ssh
    - enable: True
    - reload: True
    - watch:
      - file: control-ssh-configuration-file-managed
