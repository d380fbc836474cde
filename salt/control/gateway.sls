{# One address for clients, in front of the heads of whatever is deployed: HAProxy, as bottleneck.plan.gateway writes it. #}
{% set control = pillar['control'] %}
control-gateway-files-cmd-run:
  cmd.run:
    - name: >-
        changed=$({{ control['programs'] }}/python -m control.write_gateway {{ control['profile'] }} /etc/cluster/gateway)
        && if [ -n "$changed" ]; then echo "changed=yes comment='$(echo $changed)'"; else echo changed=no; fi
    - cwd: {{ control['tree'] }}
    - stateful: True
    - require:
      - file: control-install-directory-etc-cluster-file-directory
      - file: control-install-directory-var-lib-cluster-file-directory

{# Debian's own service of the package would run beside ours, with a configuration of nobody's. #}
control-gateway-packaged-service-dead:
  service.dead:
    - name: haproxy
    - enable: False
    - require:
      - pkg: control-install-packages-pkg-installed

control-gateway-unit-file-managed:
  file.managed:
    - name: /etc/systemd/system/cluster-gateway.service
    - source: salt://control/files/cluster-gateway.service
    - mode: '0644'

{# A reload: the process before it carries on the requests that are under way. #}
control-gateway-service-service-running:
  service.running:
    - name: cluster-gateway
    - enable: True
    - reload: True
    - require:
      - pkg: control-install-packages-pkg-installed
      - service: control-interface-service-service-running
    - watch:
      - cmd: control-gateway-files-cmd-run
      - file: control-gateway-unit-file-managed
