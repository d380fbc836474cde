{# What the sampler needs to know, and no more; the minion's own settings say where its bus is. #}
{% set links = {} %}
{% for name, link in pillar['node']['links'] | dictsort %}
{% set cables = link['peers'].values() | map(attribute='interface') | sort %}
{% do links.update({name: cables or [link['interface']]}) %}
{% endfor %}
{% set config = {
  'node': pillar['node']['name'],
  'links': links,
  'control': {'address': pillar['control']['address'], 'port': pillar['control']['exporter_port']},
  'minion': {'id': grains['id'], 'sock_dir': opts['sock_dir']},
  'directory': '/run/cluster/telemetry',
  'spool_directory': '/var/lib/cluster/telemetry',
  'key_file': opts.get('cluster_node_key', '/etc/cluster/node.key'),
  'worker_file': '/run/cluster/worker.json',
  'supervise_directory': '/run/cluster/supervise',
} %}
{% do config.update(pillar['sampler']) %}
sampler-config-file-serialize:
  file.serialize:
    - name: /etc/cluster/sampler.json
    - dataset: {{ config | json }}
    - serializer: json
    - makedirs: true
    - mode: '0644'
