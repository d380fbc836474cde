{# What every node has before anything else: its folders, and the names of the others. #}
{% for directory in ['/etc/cluster', '/opt/cluster', '/var/lib/cluster', '/var/log/cluster', '/var/cache/cluster'] %}
base-init-directory{{ directory | replace('/', '-') }}-file-directory:
  file.directory:
    - name: {{ directory }}
    - mode: '0755'
{% endfor %}

{# With it the node seals what it sends; it is in this node's pillar alone. #}
base-init-node-key-learnt:
  node_key.learnt:
    - name: what this node sends
    - require:
      - file: base-init-directory-etc-cluster-file-directory

{% for hostname, address in pillar['hosts'] | dictsort %}
base-init-host-{{ hostname }}-host-present:
  host.present:
    - name: {{ hostname | json }}
    - ip: {{ address | json }}
{% endfor %}
