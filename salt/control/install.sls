{# Debian's packages of a control node; Salt itself is in our own environment, from the lock file. #}
control-install-packages-pkg-installed:
  pkg.installed:
    - pkgs:
      - chrony
      - dnsmasq-base
      - haproxy
      - ipxe
      - iproute2
      - logrotate
      - mmdebstrap
      - nftables
      - openssl
      - procps
      - prometheus
      - rsync
      - squashfs-tools
      - zstd

{% for directory, mode in [('/etc/cluster', '0755'), ('/var/lib/cluster', '0755'), ('/var/log/cluster', '0755'), ('/etc/salt', '0755')] %}
control-install-directory{{ directory | replace('/', '-') }}-file-directory:
  file.directory:
    - name: {{ directory }}
    - mode: '{{ mode }}'
{% endfor %}

{% for hostname, address in pillar.get('hosts', {}) | dictsort %}
control-install-host-{{ hostname }}-host-present:
  host.present:
    - name: {{ hostname | json }}
    - ip: {{ address | json }}
{% endfor %}
