{# The image changed: whoever is due by the control node's own records is reprovisioned, whatever the event says. #}
reactor-image-changed-reprovision-changed:
  runner.reprovision.changed: []
