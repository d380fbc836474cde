{# Links beside the one the node booted over get their address here; a direct link has no DHCP server. On a mesh or
   ring the address is the node's, not a cable's: each peer is reached over the cable that leads to it, and on a ring the
   others through a neighbour. #}
{% for name, link in pillar['node']['links'] | dictsort %}
{% if link['kind'] in ('full-mesh', 'ring') %}
{% set peers = {} %}
{% for peer in link['peers'].values() %}{% do peers.update({peer['address']: peer['interface']}) %}{% endfor %}
{% set through = {} %}
{% for far in link['through'].values() %}{% do through.update({far['address']: far['via']}) %}{% endfor %}
network-init-mesh-{{ name }}-link-meshed:
  link.meshed:
    - name: {{ link['interface'] | json }}
    - address: {{ link['address'] | json }}
    - mtu: {{ link['mtu'] }}
    - peers: {{ peers | json }}
    - through: {{ through | json }}
{% else %}
network-init-link-{{ name }}-link-configured:
  link.configured:
    - name: {{ link['interface'] | json }}
    - address: {{ link['address'] | json }}
    - prefix_length: {{ link['prefix_length'] }}
    - mtu: {{ link['mtu'] }}
{% endif %}
{% endfor %}
