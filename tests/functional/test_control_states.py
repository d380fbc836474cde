"""The control node's states, from its profile through the pillar; their files before the programs that read them."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from saltfactories.utils.functional import Loaders

from bottleneck.profile import Profile, find_profile, load_profile
from netboot.control_node import ControlNodeError, control_pillar
from tests.functional.minion_options import minion_options

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
PROFILES = ["arc-a770/v0.1", "ryzen-ai-max/v0.2"]
STATES = sorted(
    ".".join(path.relative_to(REPOSITORY / "salt").with_suffix("").parts).removesuffix(".init")
    for path in (REPOSITORY / "salt" / "control").glob("*.sls")
)
IDENTIFIER = re.compile(r"^control(-[a-z0-9]+)+$")


@pytest.fixture(scope="module", params=PROFILES)
def profile(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    folder = tmp_path_factory.mktemp("profiles") / "profiles"
    shutil.copytree(REPOSITORY / "profiles", folder)
    path = folder / f"{request.param}.yaml"
    # A machine that is not bought yet has an interface that nobody knows.
    path.write_text(path.read_text().replace("interface: unknown", "interface: eth-test"))
    return load_profile(path)


@pytest.fixture(scope="module")
def control(profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("control")
    paths = {"cluster_profile": str(profile.path), "cluster_control": str(REPOSITORY)}
    options = minion_options(root, "control-node", modules_dirs=[], states_dirs=[], **paths)
    return Loaders(options)


@pytest.mark.parametrize("sls", STATES)
def test_it_renders(control: Any, sls: str) -> None:
    rendered = control.modules.state.show_sls(sls)
    assert isinstance(rendered, dict), rendered
    assert rendered
    for identifier in rendered:
        assert IDENTIFIER.match(identifier), identifier


def test_what_a_state_requires_or_watches_exists(control: Any) -> None:
    rendered = control.modules.state.show_sls("control")
    for identifier, state in rendered.items():
        for parts in (parts for name, parts in state.items() if not name.startswith("__")):
            for part in (part for part in parts if isinstance(part, dict)):
                for kind in ("require", "watch"):
                    for wanted in part.get(kind, []):
                        ((module, name),) = wanted.items()
                        assert module in rendered.get(name, {}), f"{identifier} {kind}s {module} {name}"


def render(control: Any, source: str, folder: Path) -> Path:
    path = folder / Path(source).name
    assert control.modules.cp.get_template(f"salt://control/files/{source}", str(path), template="jinja")
    return path


def run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.skipif(not shutil.which("nft") or os.geteuid() != 0, reason="needs nft, as root")
def test_nft_takes_the_firewall_twice_and_it_holds_only_its_interface(
    control: Any, profile: Profile, tmp_path: Path
) -> None:
    rules = render(control, "firewall.nft", tmp_path)
    # A namespace of its own: nothing of this machine's rules is touched.
    listed = run("unshare", "--net", "sh", "-c", f"nft -f {rules} && nft -f {rules} && nft list table inet cluster")
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.count("chain input") == 1
    assert f'iifname != "{profile.control.interface}" accept' in listed.stdout
    for port in ("4505", "4506", "67", "69", "123"):
        assert port in listed.stdout


LISTEN = """
import socket, sys
listeners = [socket.create_server((sys.argv[1], int(port)), backlog=8) for port in sys.argv[2:]]
print("listens", flush=True)
sys.stdin.read()
"""
CONNECT = """
import socket, sys
for port in sys.argv[2:]:
    try:
        socket.create_connection((sys.argv[1], int(port)), 1.0).close()
        print(port, "open")
    except OSError as error:
        print(port, type(error).__name__)
"""


@pytest.fixture
def wire(profile: Profile) -> Iterator[tuple[str, str]]:
    """Two namespaces, a control node's and a node's, with a cable between them."""
    here, there = (f"fw{os.getpid()}{end}" for end in "cn")
    interface, address = str(profile.control.interface), str(profile.control.address)
    node = next(iter(profile.nodes.values())).links[profile.control.network].address
    try:
        for name in (here, there):
            assert run("ip", "netns", "add", name).returncode == 0
        made = run("ip", "-n", here, "link", "add", interface, "type", "veth", "peer", "name", "eth9", "netns", there)
        assert made.returncode == 0, made.stderr
        for name, each, own in ((here, interface, address), (there, "eth9", node)):
            assert run("ip", "-n", name, "addr", "add", f"{own}/24", "dev", each).returncode == 0
            assert run("ip", "-n", name, "link", "set", each, "up").returncode == 0
        yield here, there
    finally:
        for name in (here, there):
            run("ip", "netns", "del", name)


@pytest.mark.skipif(not shutil.which("nft") or os.geteuid() != 0, reason="needs nft and namespaces, as root")
def test_a_node_reaches_salt_and_asks_what_is_stored_and_reaches_nothing_else(
    control: Any, profile: Profile, wire: tuple[str, str], tmp_path: Path
) -> None:
    here, there = wire
    address = str(profile.control.address)
    assert run("ip", "netns", "exec", here, "nft", "-f", render(control, "firewall.nft", tmp_path)).returncode == 0
    ports = ["4505", "4506", str(profile.telemetry.exporter_port), "9090"]
    listening = subprocess.Popen(
        ["ip", "netns", "exec", here, sys.executable, "-c", LISTEN, address, *ports],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert listening.stdout is not None and listening.stdout.readline() == "listens\n"
        seen = run("ip", "netns", "exec", there, sys.executable, "-c", CONNECT, address, *ports)
    finally:
        listening.communicate(timeout=30)
    assert seen.stdout.splitlines() == [*(f"{port} open" for port in ports[:3]), "9090 TimeoutError"], seen.stderr


def serving(here: str, addresses: list[str], ports: list[str]) -> Any:
    """Listen on ports of addresses in a namespace, as services there do."""
    argv = ["ip", "netns", "exec", here, sys.executable, "-c", LISTEN_ON_ALL, ",".join(addresses), *ports]
    made = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None and made.stdout.readline() == "listens\n"
    return made


def reached(there: str, address: str, ports: list[str], source: str = "") -> list[str]:
    """Return which ports of an address a machine reaches."""
    argv = ["ip", "netns", "exec", there, sys.executable, "-c", CONNECT_FROM, address, source, *ports]
    return [line.split()[0] for line in run(*argv).stdout.splitlines() if line.endswith(" open")]


LISTEN_ON_ALL = """
import socket, sys
listeners = [
    socket.create_server((address, int(port)), backlog=8) for address in sys.argv[1].split(",") for port in sys.argv[2:]
]
print("listens", flush=True)
sys.stdin.read()
"""
CONNECT_FROM = """
import socket, sys
for port in sys.argv[3:]:
    try:
        socket.create_connection((sys.argv[1], int(port)), 0.7, (sys.argv[2], 0)).close()
        print(port, "open")
    except OSError as error:
        print(port, type(error).__name__)
"""
LAN, LAN_MACHINE = "198.51.100.1", "198.51.100.2"


@pytest.mark.skipif(not shutil.which("nft") or os.geteuid() != 0, reason="needs nft and namespaces, as root")
def test_strangers_on_either_side_reach_no_port_of_the_cluster(
    control: Any, profile: Profile, wire: tuple[str, str], tmp_path: Path
) -> None:
    """A machine of the LAN, which Linux would answer for any of its addresses, and one on the provisioning network."""
    here, there = wire
    address = str(profile.control.address)
    node = next(iter(profile.nodes.values())).links[profile.control.network].address
    stranger = str(ipaddress.IPv4Address(address) + 150)
    lan = f"{here}l"
    nodes = ["4505", "4506", str(profile.telemetry.exporter_port)]
    boot = [str(profile.boot.port)] if profile.boot else []
    try:
        assert run("ip", "netns", "add", lan).returncode == 0
        for command in (
            f"-n {here} link add lan0 type veth peer name eth0 netns {lan}",
            f"-n {here} addr add {LAN}/24 dev lan0",
            f"-n {here} link set lan0 up",
            f"-n {here} link set lo up",
            f"-n {lan} addr add {LAN_MACHINE}/24 dev eth0",
            f"-n {lan} link set eth0 up",
            f"-n {lan} route add {profile.networks[profile.control.network].subnet} via {LAN}",
            f"-n {there} addr add {stranger}/24 dev eth9",
            f"-n {there} route add {LAN}/32 via {address}",
        ):
            made = run("ip", *command.split())
            assert made.returncode == 0, f"{command}: {made.stderr}"
        listening = serving(here, [address, LAN], [*nodes, *boot, "22"])
        try:
            # Without rules every one of them gets in: what the test sees is the rules' doing.
            assert reached(lan, address, nodes) == nodes
            assert reached(there, address, nodes, stranger) == nodes
            assert (
                run("ip", "netns", "exec", here, "nft", "-f", render(control, "firewall.nft", tmp_path)).returncode == 0
            )
            assert reached(lan, address, [*nodes, *boot, "22"]) == [], "the cluster's address over the LAN"
            assert reached(lan, LAN, ["22"]) == ["22"], "what is not the cluster's stays as it was"
            assert reached(there, address, [*nodes, *boot, "22"], stranger) == boot, "a machine that may boot, no more"
            assert reached(there, LAN, [*nodes, *boot, "22"], node) == [], "the LAN's address over the cluster's wire"
            assert reached(there, address, [*nodes, *boot, "22"], node) == [*nodes, *boot]
            assert reached(here, address, ["4506"]) == ["4506"], "the control node itself"
        finally:
            listening.communicate(timeout=30)
    finally:
        run("ip", "netns", "del", lan)


@pytest.mark.skipif(not shutil.which("nft") or os.geteuid() != 0, reason="needs nft and namespaces, as root")
def test_nothing_that_came_through_a_router_reaches_the_boot_service(
    control: Any, profile: Profile, wire: tuple[str, str], tmp_path: Path
) -> None:
    if profile.boot is None:
        pytest.skip("nothing boots")
    here, there = wire
    address, port = str(profile.control.address), str(profile.boot.port)
    node = next(iter(profile.nodes.values())).links[profile.control.network].address
    for command in (f"-n {there} addr add {LAN_MACHINE}/24 dev eth9", f"-n {here} route add {LAN_MACHINE} via {node}"):
        assert run("ip", *command.split()).returncode == 0
    listening = serving(here, [address], [port])
    try:
        assert reached(there, address, [port], LAN_MACHINE) == [port]
        assert run("ip", "netns", "exec", here, "nft", "-f", render(control, "firewall.nft", tmp_path)).returncode == 0
        assert reached(there, address, [port], LAN_MACHINE) == []
        assert reached(there, address, [port], node) == [port]
    finally:
        listening.communicate(timeout=30)


@pytest.mark.skipif(not shutil.which("nft") or os.geteuid() != 0, reason="needs nft and namespaces, as root")
def test_the_gateway_is_open_to_whom_the_profile_names(profile: Profile, wire: tuple[str, str], tmp_path: Path) -> None:
    here, there = wire
    address, port = str(profile.control.address), str(profile.control.gateway_port)
    node = next(iter(profile.nodes.values())).links[profile.control.network].address
    client = str(ipaddress.IPv4Address(address) + 151)
    assert run("ip", "-n", there, "addr", "add", f"{client}/24", "dev", "eth9").returncode == 0
    assert run("ip", "-n", here, "link", "set", "lo", "up").returncode == 0
    template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(
        (REPOSITORY / "salt" / "control" / "files" / "firewall.nft").read_text()
    )
    listening = serving(here, [address], [port])
    try:
        # The second names one twice, which nft would refuse as it stands.
        for networks, open_to_client in (([], []), ([f"{client}/32", f"{client}/31"], [port])):
            deployments = {
                name: each.model_copy(update={"api_clients": networks}) for name, each in profile.deployments.items()
            }
            changed = profile.model_copy(update={"deployments": deployments})
            rules = tmp_path / "firewall.nft"
            rules.write_text(template.render(pillar=control_pillar(changed, REPOSITORY, "/p")))
            loaded = run("ip", "netns", "exec", here, "nft", "-f", rules)
            assert loaded.returncode == 0, loaded.stderr
            assert reached(there, address, [port], client) == open_to_client
            assert reached(there, address, [port], node) == [], "a node is no client"
            assert reached(here, address, [port]) == [port], "the control node itself"
    finally:
        listening.communicate(timeout=30)


@pytest.mark.skipif(not shutil.which("logrotate"), reason="needs logrotate")
def test_logrotate_takes_its_configuration(control: Any, tmp_path: Path) -> None:
    found = run("logrotate", "--debug", "--state", tmp_path / "state", render(control, "logrotate.conf", tmp_path))
    assert found.returncode == 0 and "error" not in found.stderr, found.stderr


@pytest.mark.skipif(not shutil.which("chronyd"), reason="needs chronyd")
def test_chronyd_takes_its_configuration(control: Any, profile: Profile, tmp_path: Path) -> None:
    found = run("chronyd", "-p", "-f", render(control, "chrony.conf", tmp_path))
    assert found.returncode == 0, found.stderr
    assert f"allow {profile.networks[profile.control.network].subnet}" in found.stdout


def test_sshd_takes_its_configuration(control: Any, tmp_path: Path) -> None:
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    if not Path(sshd).exists():
        pytest.skip("needs sshd")
    key = tmp_path / "key"
    assert run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).returncode == 0
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    found = run(sshd, "-T", "-f", render(control, "sshd.conf", tmp_path), "-h", key)
    assert "clientaliveinterval 5" in found.stdout, found.stderr


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool")
def test_promtool_takes_its_configuration(control: Any, tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text(control.modules.pillar.get("control:prometheus", unmask=True))
    shutil.copy(REPOSITORY / "salt" / "prometheus" / "files" / "rules.yml", tmp_path)
    found = run("promtool", "check", "config", tmp_path / "prometheus.yml")
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
@pytest.mark.parametrize(
    "unit",
    [
        *("cluster-interface.service", "cluster-firewall.service", "cluster-dnsmasq.service"),
        *("cluster-gateway.service", "salt-master.service"),
    ],
)
def test_systemd_takes_each_unit(control: Any, tmp_path: Path, unit: str) -> None:
    path = render(control, unit, tmp_path)
    found = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", path)
    about_it = [line for line in found.stderr.splitlines() if unit in line and "is not executable" not in line]
    assert about_it == []


def test_the_master_admits_nobody_by_itself_and_says_what_the_boot_service_reads(control: Any) -> None:
    master = control.modules.pillar.get("control:master", unmask=True)
    assert (master["auto_accept"], master["open_mode"]) == (False, False)
    assert not [key for key in master if key.startswith("autosign")]
    assert master["interface"] == control.modules.pillar.get("control:address", unmask=True)
    assert {"boot": {}} in master["engines"]
    for entry in master["reactor"]:
        for files in entry.values():
            assert all(Path(name).is_file() for name in files)
    # It is read back as what it was: file.serialize writes it as YAML.
    assert yaml.safe_load(yaml.safe_dump(master)) == master


def test_a_lab_has_no_control_node_to_set_up() -> None:
    lab = load_profile(find_profile("embedded"))
    with pytest.raises(ControlNodeError, match=r"control\.interface is missing"):
        control_pillar(lab, REPOSITORY, "/opt/cluster/venv/bin")


def test_its_files_are_written_once(control: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file states applied for real below a folder: what they write is whole, private where it must be, and kept."""
    rendered = control.modules.state.show_sls("control")
    for _ in range(2):
        changed = []
        for identifier, state in rendered.items():
            for function, arguments in state_calls(state):
                if function.startswith("file.") and "source" not in arguments:
                    arguments["name"] = str(tmp_path / arguments["name"].lstrip("/"))
                    result = control.states[function](**{**arguments, "makedirs": True})
                    assert result.result is not False, f"{identifier}: {result.comment}"
                    changed += [identifier] if result.changes else []
    assert changed == [], "the second time changes nothing"
    master = tmp_path / "etc" / "salt" / "master"
    assert yaml.safe_load(master.read_text())["auto_accept"] is False
    assert master.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "etc" / "salt" / "pki" / "master").stat().st_mode & 0o777 == 0o700
    assert "scrape_configs" in yaml.safe_load((tmp_path / "etc" / "prometheus" / "prometheus.yml").read_text())
    settings = (tmp_path / "root" / ".config" / "cluster" / "cluster.toml").read_text()
    assert tomllib.loads(settings)["control"] == {"host": "here"}


def state_calls(state: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the functions of a rendered state with their arguments, less requisites."""
    calls = []
    for module, parts in state.items():
        if not module.startswith("__"):
            (function,) = [part for part in parts if isinstance(part, str)]
            arguments = {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}
            for key in ("require", "watch", "order", "check_cmd"):
                arguments.pop(key, None)
            calls.append((f"{module}.{function}", arguments))
    return calls
