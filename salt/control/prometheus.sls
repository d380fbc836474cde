control-prometheus-configuration-file-managed:
  file.managed:
    - name: /etc/prometheus/prometheus.yml
    - contents_pillar: control:prometheus
    - mode: '0644'
    - require:
      - pkg: control-install-packages-pkg-installed

control-prometheus-rules-file-managed:
  file.managed:
    - name: /etc/prometheus/rules.yml
    - source: salt://prometheus/files/rules.yml
    - mode: '0644'
    - require:
      - pkg: control-install-packages-pkg-installed

control-prometheus-arguments-file-managed:
  file.managed:
    - name: /etc/default/prometheus
    - contents: ARGS="--web.listen-address={{ pillar['control']['prometheus_address'] }}"
    - mode: '0644'

control-prometheus-service-service-running:
  service.running:
    - name: prometheus
    - enable: True
    - watch:
      - file: control-prometheus-configuration-file-managed
      - file: control-prometheus-rules-file-managed
      - file: control-prometheus-arguments-file-managed
