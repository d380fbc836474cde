{# DHCP and TFTP on the cluster's one interface, as netboot.boot writes them from the profile. #}
{% set control = pillar['control'] %}
{% if control['boot_port'] %}
control-dnsmasq-files-cmd-run:
  cmd.run:
    - name: >-
        changed=$({{ control['programs'] }}/python -m netboot.boot.write {{ control['profile'] }} /var/lib/cluster/dnsmasq)
        && if [ -n "$changed" ]; then echo "changed=yes comment='$(echo $changed)'"; else echo changed=no; fi
    - cwd: {{ control['tree'] }}
    - stateful: True
    - require:
      - pkg: control-install-packages-pkg-installed
      - file: control-install-directory-var-lib-cluster-file-directory

control-dnsmasq-unit-file-managed:
  file.managed:
    - name: /etc/systemd/system/cluster-dnsmasq.service
    - source: salt://control/files/cluster-dnsmasq.service
    - mode: '0644'

control-dnsmasq-service-service-running:
  service.running:
    - name: cluster-dnsmasq
    - enable: True
    - require:
      - service: control-interface-service-service-running
    - watch:
      - cmd: control-dnsmasq-files-cmd-run
      - file: control-dnsmasq-unit-file-managed
{% endif %}
