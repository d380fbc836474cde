{# The same model for the engines that deployments name beside that of the accelerator. #}
{% from 'model/states.jinja' import conversion_states %}
include:
  - model
  - engine.further

{% for conversion in pillar['conversions'] if conversion['kind'] != pillar['engine']['kind'] %}
{{ conversion_states(conversion, 'model-further', 'engine.further') }}
{% endfor %}
