{# What comes in on the cluster's interface: only what a node needs. Other interfaces are not touched. #}
control-firewall-rules-file-managed:
  file.managed:
    - name: /etc/cluster/firewall.nft
    - source: salt://control/files/firewall.nft
    - template: jinja
    - mode: '0644'
    - check_cmd: nft --check --file
    - require:
      - pkg: control-install-packages-pkg-installed
      - file: control-install-directory-etc-cluster-file-directory

control-firewall-unit-file-managed:
  file.managed:
    - name: /etc/systemd/system/cluster-firewall.service
    - source: salt://control/files/cluster-firewall.service
    - mode: '0644'

control-firewall-service-service-running:
  service.running:
    - name: cluster-firewall
    - enable: True
    - reload: True
    - watch:
      - file: control-firewall-rules-file-managed
      - file: control-firewall-unit-file-managed
