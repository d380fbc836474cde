{# This project's own programs for engines: kilobytes, so every node has those of all engines that it may be given. #}
{% set placed = [] %}
{% for engine in [pillar['engine']] + pillar['engines'] %}
{% set name = engine.get('programs') %}
{% if name and name not in placed %}
{% do placed.append(name) %}
engine-programs-{{ name | replace('_', '-') }}-file-recurse:
  file.recurse:
    - name: /opt/cluster/programs/{{ name }}
    - source: salt://engine/files/{{ name }}
    - include_pat: '*.py'
    - clean: true
    - makedirs: true
    - dir_mode: '0755'
    - file_mode: '0644'
{% endif %}
{% endfor %}
