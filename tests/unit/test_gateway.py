"""The gateway's configuration has every head of the profile, answers clients in their own form, and no secret."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bottleneck.plan import gateway
from bottleneck.plan.master import ENGINE_KEY_FILE, STATE_DIRECTORY
from bottleneck.profile import Profile, find_profile, load_profile
from bottleneck.profile.paths import repository_directory
from cli import cluster
from control import write_gateway
from lab import gateway as lab_gateway
from netboot.control_node import control_pillar

PROFILES = repository_directory() / "profiles"


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile(PROFILES / "embedded.yaml")


def test_every_node_that_may_be_a_head_is_behind_it(profile: Profile) -> None:
    assert gateway.heads(profile) == {"node0": "10.77.0.10:8000", "node1": "10.77.0.11:8000"}
    text = gateway.configuration(profile, "/k")
    servers = re.findall(r"^    server (\S+) (\S+)$", text, re.MULTILINE)
    assert servers == list(gateway.heads(profile).items())
    assert "    server head 10.77.0.1:8000 disabled\n" in text, "before the first deploy nobody waits for a head"
    assert "bind 10.77.0.1:8000\n" in text, "no other address of the control node"


def test_its_port_is_the_profiles(profile: Profile) -> None:
    control = profile.control.model_copy(update={"gateway_port": 9000})
    changed = profile.model_copy(update={"control": control})
    assert "bind 10.77.0.1:9000\n" in gateway.configuration(changed, "/k")
    assert changed.control.gateway_url == "http://10.77.0.1:9000/v1"


def test_what_it_says_itself_is_an_error_as_clients_read_it(profile: Profile) -> None:
    texts = re.findall(r"string '(\{\"error.*?\})'", gateway.configuration(profile, "/k"))
    messages = {json.loads(text)["error"]["message"] for text in texts}
    assert len(messages) == 4
    assert all("cluster status" in message or "cluster endpoint" in message for message in messages)


def test_no_expression_is_compiled_which_its_unit_forbids(profile: Profile) -> None:
    # With MemoryDenyWriteExecute HAProxy's compiler of regular expressions fails, and with it the start: seen under
    # systemd 252, where `http-check expect ! rstatus ^5` did.
    words = gateway.configuration(profile, "/run/key").split()
    assert not {"rstatus", "rstring", "regex", "reg", "path_reg", "-r"} & set(words)


def test_the_key_stands_in_a_file_and_nowhere_else(profile: Profile) -> None:
    files = gateway.files(profile, "/run/x/key", Path("/etc/x"))
    assert list(files) == [Path("/etc/x/haproxy.cfg"), Path("/etc/x/wait_for_head.lua")]
    assert "http_auth_bearer -m str -f /run/x/key\n" in files[Path("/etc/x/haproxy.cfg")]
    assert "lua-load /etc/x/wait_for_head.lua\n" in files[Path("/etc/x/haproxy.cfg")]
    unit = (repository_directory() / "salt/control/files/cluster-gateway.service").read_text()
    copied = re.findall(r"=\+/usr/bin/install -o haproxy -g haproxy -m 0400 (\S+) (\S+)$", unit, re.MULTILINE)
    # At the start, and at a reload.
    assert copied == [(f"{STATE_DIRECTORY}/{ENGINE_KEY_FILE}", write_gateway.KEY_FILE)] * 2
    in_lab = lab_gateway.files(profile)["/etc/cluster/gateway/haproxy.cfg"][0]
    assert "-f /var/lib/cluster/secrets/engine-api.key\n" in in_lab


def test_networks_of_clients_are_named_once_for_the_firewall() -> None:
    profile = load_profile(find_profile("arc-a770/v0.1"))
    assert control_pillar(profile, repository_directory(), "/p")["control"]["api_clients"] == []
    clients = {"pp2": ["10.40.0.0/25", "10.40.0.128/25"], "tp2": ["10.40.0.7/32"]}
    deployments = {
        name: each.model_copy(update={"api_clients": clients.get(name, [])})
        for name, each in profile.deployments.items()
    }
    assert clients.keys() <= deployments.keys()
    changed = profile.model_copy(update={"deployments": deployments})
    assert control_pillar(changed, repository_directory(), "/p")["control"]["api_clients"] == ["10.40.0.0/24"]


def test_a_person_sees_each_head_and_a_gateway_that_is_gone() -> None:
    heads = {name: {"state": state, "requests": 0} for name, state in (("a", "UP"), ("b", "DOWN"), ("c", "NOLB"))}
    seen = {"up": True, "url": "http://x:8000/v1", "reason": None, "heads": heads}
    assert cluster._of_gateway(seen) == ["gateway: http://x:8000/v1 (a serves, b does not answer, c NOLB)"]
    (gone,) = cluster._of_gateway({**seen, "up": False, "reason": "no [socket]; next: cluster doctor"})
    assert gone == r"[red]gateway: no \[socket]; next: cluster doctor[/]"
