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
    - require:
      - file: model-init-maker-file-recurse
      - engine: engine-install-environment-engine-installed

model-init-current-file-symlink:
  file.symlink:
    - name: /opt/cluster/model
    - target: {{ pillar['model']['directory'] | json }}
    - require:
      - model: model-init-checkpoint-model-present

{# The same model in the form of each engine that does not load the checkpoint as it is. #}
{% for conversion in pillar['conversions'] %}
model-init-{{ conversion['kind'] }}-model-converted:
  model.converted:
    - name: {{ conversion['directory'] | json }}
    - conversion: {{ conversion | json }}
    - scripts: /opt/cluster/model-maker
    - require:
      - file: model-init-maker-file-recurse
      - model: model-init-checkpoint-model-present
      - sls: engine
{% endfor %}
