{# Links beside the one the node booted over get their address here; a direct link has no DHCP server. #}
{% for name, link in pillar['node']['links'] | dictsort %}
network-init-link-{{ name }}-link-configured:
  link.configured:
    - name: {{ link['interface'] | json }}
    - address: {{ link['address'] | json }}
    - prefix_length: {{ link['prefix_length'] }}
    - mtu: {{ link['mtu'] }}
{% endfor %}
