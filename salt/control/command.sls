{# `cluster` on the control node itself means this control node. #}
control-command-settings-file-managed:
  file.managed:
    - name: /root/.config/cluster/cluster.toml
    - contents: |
        # Written by the state control.command.
        profile = {{ pillar['control']['profile'] | json }}
        control.host = "here"
    - mode: '0644'
    - makedirs: True
    - dir_mode: '0755'
