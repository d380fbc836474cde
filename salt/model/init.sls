{# A checkpoint made here, a local folder, or a hub name: the profile says which. #}
include:
  - engine

model-init-maker-file-managed:
  file.managed:
    - name: /opt/cluster/model-maker/make_model.py
    - source: salt://model/files/make_model.py
    - makedirs: true
    - mode: '0644'

model-init-checkpoint-model-present:
  model.present:
    - name: {{ pillar['model']['directory'] | json }}
    - model: {{ pillar['model'] | json }}
    - engine_directory: {{ pillar['engine']['directory'] | json }}
    - maker: /opt/cluster/model-maker/make_model.py
    - require:
      - file: model-init-maker-file-managed
      - engine: engine-install-environment-engine-installed

model-init-current-file-symlink:
  file.symlink:
    - name: /opt/cluster/model
    - target: {{ pillar['model']['directory'] | json }}
    - require:
      - model: model-init-checkpoint-model-present
