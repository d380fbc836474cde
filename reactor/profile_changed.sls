{# The profile changed: whoever is due by the control node's own records is reprovisioned, whatever the event says. #}
reactor-profile-changed-reprovision-changed:
  runner.reprovision.changed: []
