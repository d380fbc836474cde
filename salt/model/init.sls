{# A checkpoint made here, a local folder, or a hub name: the profile says which. #}
include:
  - engine

model-init-maker-file-recurse:
  file.recurse:
    - name: /opt/cluster/model-maker
    - source: salt://model/files
    - include_pat: '*.py'
    - dir_mode: '0755'
    - file_mode: '0644'
    - makedirs: true

model-init-checkpoint-model-present:
  model.present:
    - name: {{ pillar['model']['directory'] | json }}
    - model: {{ pillar['model'] | json }}
    - engine_directory: {{ pillar['engine']['directory'] | json }}
    - maker: /opt/cluster/model-maker/make_model.py
    - server: {{ pillar['control']['models'] | json }}
    - require:
      - file: model-init-maker-file-recurse
      - engine: engine-install-environment-engine-installed

model-init-current-file-symlink:
  file.symlink:
    - name: /opt/cluster/model
    - target: {{ pillar['model']['directory'] | json }}
    - require:
      - model: model-init-checkpoint-model-present

{% from 'model/states.jinja' import conversion_states %}
{% for conversion in pillar['conversions'] if conversion['kind'] == pillar['engine']['kind'] %}
{{ conversion_states(conversion, 'model-init', 'engine') }}
{% endfor %}
