{# The engine of the node's accelerator; what it is, is data of the engine map. #}
{% from 'engine/states.jinja' import engine_states %}
{{ engine_states(pillar['engine'], 'engine-install', '/etc/cluster/engine-requirements.txt') }}
