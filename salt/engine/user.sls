{# Engines take what strangers send: they are not root, and write into one folder. Its number is the same on all nodes,
   for the lab's share that folder; it is one that no distribution gives by itself. #}
engine-user-account-user-present:
  user.present:
    - name: cluster-engine
    - uid: 47710
    - usergroup: true
    - home: /var/cache/cluster/engine
    - createhome: false
    - shell: /usr/sbin/nologin
    - optional_groups:
      - render
      - video

engine-user-home-file-directory:
  file.directory:
    - name: /var/cache/cluster/engine
    - user: cluster-engine
    - group: cluster-engine
    - mode: '0750'
    - makedirs: true
    - require:
      - user: engine-user-account-user-present
