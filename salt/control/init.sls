include:
  - control.install
  - control.interface
  - control.firewall
  - control.time
  - control.ssh
  - control.master
  - control.dnsmasq
  - control.prometheus
  - control.command
