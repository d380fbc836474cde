"""Profiles of hardware: what is in them, what has to be, and what keeps them from being deployed."""

import shutil
from pathlib import Path

import pytest

from bottleneck.performance.model import parameters, read_bytes
from bottleneck.plan.nodes import hosts, node_pillar, worker_specs
from bottleneck.profile import Profile, ProfileError, find_profile, load_profile
from bottleneck.profile.hardware_checks import (
    HARDWARE_NUMBERS,
    assumptions,
    covers,
    open_points,
    refuse_open,
    source_of,
)
from bottleneck.profile.paths import repository_directory
from tests.profile_variants import changed

PROFILES = repository_directory() / "profiles"
ARC, RYZEN, H200 = "arc-a770/v0.1", "ryzen-ai-max/v0.2", "nvidia-h200/v1"


@pytest.fixture(autouse=True)
def _own_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLUSTER_PROFILES_DIR", raising=False)


def problems(path: Path) -> list[str]:
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    return [line.partition(": ")[2] for line in str(caught.value).splitlines()]


def test_the_arc_cluster_is_as_it_was_given() -> None:
    profile = load_profile(find_profile("arc-a770"))
    assert (profile.name, profile.version) == ("arc-a770", "0.1")
    control = profile.control
    assert (control.hostname, control.label, control.interface) == ("control-0-1", "control_0_1", "enx8cae4cf44e21")
    assert [node.board for node in profile.nodes.values()] == ["MSI MPG Z690 Carbon WiFi"] * 2
    accelerator = profile.nodes["node1"].accelerator
    assert accelerator.memory_bandwidth_bytes_per_second == 560e9
    assert accelerator.pcie is not None
    # 16 GT/s of 16 lanes, 128 of 130 bits.
    assert accelerator.pcie.bandwidth_bytes_per_second == pytest.approx(31.508e9, rel=1e-4)
    assert profile.networks["usb4"].kind == "point-to-point"
    assert profile.boot is not None and "i915.force_probe=56a0" in profile.boot.kernel_line


@pytest.mark.parametrize("name", [ARC, RYZEN, H200])
def test_the_model_is_mistral_small_in_four_bits(name: str) -> None:
    model = load_profile(find_profile(name)).model
    assert parameters(model.shape.model_shape()).total == pytest.approx(22.25e9, rel=2e-4)
    read = read_bytes(model.shape.model_shape(), model.quantization.weight_format())
    assert read == pytest.approx(11.75e9, rel=1e-2)


def test_an_arc_worker_gets_what_one_card_a_node_needs() -> None:
    head, follower = worker_specs(load_profile(find_profile(ARC)), "tp2")
    assert follower.environment["LOCAL_WORLD_SIZE"] == "1"
    assert (head.environment["FI_PROVIDER"], head.environment["CCL_ATL_TRANSPORT"]) == ("tcp", "ofi")
    assert head.environment["FI_TCP_IFACE"] == "thunderbolt0"
    assert head.argv[head.argv.index("--attention-backend") + 1] == "TRITON_ATTN"
    assert "--enforce-eager" in head.argv and follower.argv[-1] == "--headless"


def test_a_node_of_a_mesh_knows_the_cable_to_each_peer() -> None:
    profile = load_profile(find_profile(RYZEN))
    mesh = node_pillar(profile, "node2")["node"]["links"]["mesh"]
    assert mesh["peers"] == {
        "node0": {"interface": "thunderbolt0", "address": "10.42.1.10"},
        "node1": {"interface": "thunderbolt1", "address": "10.42.1.11"},
        "node3": {"interface": "thunderbolt2", "address": "10.42.1.13"},
    }
    spec = worker_specs(profile, "tp4")[2]
    assert (spec.link_address, spec.environment["NCCL_SOCKET_IFNAME"]) == ("10.42.1.12", "mesh0")
    assert len(hosts(profile)) == 5


def test_ranks_of_one_host_need_no_network() -> None:
    (spec,) = worker_specs(load_profile(find_profile(H200)), "tp4")
    assert spec.world == 1 and "--nnodes" not in spec.argv
    assert spec.argv[spec.argv.index("--tensor-parallel-size") + 1] == "4"


@pytest.mark.parametrize(("name", "count"), [(ARC, 2), (RYZEN, 5), (H200, 0), ("embedded", 0)])
def test_what_is_unknown_keeps_a_profile_from_being_deployed(name: str, count: int) -> None:
    profile = load_profile(find_profile(name))
    assert len(open_points(profile)) == count
    if count:
        with pytest.raises(ProfileError, match=rf"{name}.yaml:\d+: .*: unknown; expected") as caught:
            refuse_open(profile)
        assert len(caught.value.problems) == count
    else:
        refuse_open(profile)


# No profile here has a model's own configuration (`test_model_command`), or unlike accelerators (`test_clusters`).
HERE = [number for number in HARDWARE_NUMBERS if number != "model.config" and ".further_" not in number]


@pytest.mark.parametrize("number", HERE)
def test_a_number_without_a_source_is_a_problem(tmp_path: Path, number: str) -> None:
    name = H200 if number.endswith("interconnect") else ARC
    text = (PROFILES / f"{name}.yaml").read_text()
    entries = [key for key in load_profile(find_profile(name)).sources if overlap(key, number)]
    assert entries
    for entry in entries:
        # The entry under another key, which is then of no use.
        text = text.replace(f"  {entry}:", f"  model.name.{len(entry)}:", 1)
    shutil.copy(PROFILES / "engines.yaml", tmp_path)
    path = tmp_path / "changed.yaml"
    path.write_text(text)
    found = problems(path)
    assert any(line.endswith(f"expected an entry such as sources.{number}") for line in found), found
    assert sum("no key of this profile is meant" in line for line in found) == len(entries)


def overlap(entry: str, number: str) -> bool:
    """Return whether an entry is for a number; networks are named one by one."""
    parts, wanted = entry.split("."), number.split(".")
    return len(parts) == len(wanted) and all("*" in (a, b) or a == b for a, b in zip(parts, wanted, strict=True))


def test_a_datasheet_needs_its_address(tmp_path: Path) -> None:
    path = changed(tmp_path, ARC, ("    says: PCI Express 4.0 x16\n    url:", "    says: PCI Express 4.0 x16 # url:"))
    text = "sources.nodes.*.accelerator.pcie.url: nothing, on the basis datasheet; expected where that can be read"
    assert problems(path) == [text]


def test_what_is_assumed_is_listed() -> None:
    assert "nodes.*.cores" in assumptions(load_profile(find_profile(ARC)))
    assert "nodes.*.cores" not in assumptions(load_profile(find_profile(RYZEN)))


def test_the_closest_source_counts() -> None:
    sources = {"nodes.*": 1, "nodes.*.accelerator.memory": 2, "nodes.node1.accelerator.memory": 3}
    assert source_of(sources, "nodes.node1.accelerator.memory") == "nodes.node1.accelerator.memory"
    assert source_of(sources, "nodes.node0.accelerator.memory") == "nodes.*.accelerator.memory"
    assert source_of(sources, "nodes.node0.cores") == "nodes.*"
    assert source_of(sources, "model.shape") is None
    # A key is no beginning of a longer word.
    assert not covers("nodes.*.accelerator.memory", "nodes.node0.accelerator.memory_bandwidth")


MISTAKES: list[tuple[str, tuple[str, str], str]] = [
    (
        ARC,
        ("hostname: control-0-1", "hostname: control_0_1"),
        "control.hostname: 'control_0_1'; expected a DNS label of letters, digits and inner hyphens, such as"
        " control-0-1; the name people use may stand beside it as `label`",
    ),
    (
        ARC,
        ("mac: unknown, address: 10.40.0.10", "address: 10.40.0.10"),
        "nodes.node0.links.ethernet.mac: nothing; expected its MAC address in quotes, or unknown until it is known:"
        " netboot knows node0 by it",
    ),
    (
        ARC,
        ("  interface: enx8cae4cf44e21\n", ""),
        "control.interface: nothing; expected the one interface that boots the nodes, such as enp3s0, or unknown",
    ),
    (ARC, ("canary: node0", "canary: node9"), "boot.canary: unknown node node9 (did you mean node1?)"),
    (
        ARC,
        ("- net.ifnames=0", "- net.ifnames=0 quiet"),
        "boot.kernel_line.0: 'net.ifnames=0 quiet'; expected one argument of the kernel without spaces",
    ),
    (
        ARC,
        ("- net.ifnames=0", "- cluster.nonce=1"),
        "boot.kernel_line.0: 'cluster.nonce=1'; expected none that begins with cluster.",
    ),
    (ARC, ("generation: 4", "generation: 9"), "nodes.node0.accelerator.pcie.generation: 9; expected at most 6"),
    (
        ARC,
        ("power: {by: wake-on-lan}", "power: {by: ipmi, address: 10.40.0.90, user: admin, password: secret}"),
        "nodes.node0.power.password: unknown key; expected one of by, address, user, secret",
    ),
    (ARC, ("power: {by: wake-on-lan}", "power: {by: luck}"), "nodes.node0.power: "),
    (
        RYZEN,
        ("{node1: thunderbolt0, node2: thunderbolt1, node3: thunderbolt2}", "{node1: thunderbolt0}"),
        "nodes.node0.links.mesh.peers: node1; expected one cable to each of node1, node2, node3",
    ),
    (
        RYZEN,
        ("{node1: thunderbolt0, node2: thunderbolt1,", "{node1: thunderbolt0, node2: thunderbolt0,"),
        "nodes.node0.links.mesh.peers.node2: thunderbolt0 is also the interface to node1; expected another",
    ),
    (RYZEN, ("kind: full-mesh", "kind: switch"), "nodes.node0.links.mesh.peers: cables on mesh, of kind switch"),
    (H200, ("power: {by: hand,", "power: {by: wake-on-lan} #"), "nodes.node0.power.by: wake-on-lan without a boot"),
]


@pytest.mark.parametrize(("name", "replacement", "expected"), MISTAKES, ids=[each[2][:40] for each in MISTAKES])
def test_a_mistake_is_named(tmp_path: Path, name: str, replacement: tuple[str, str], expected: str) -> None:
    found = problems(changed(tmp_path, name, replacement))
    assert any(line.startswith(expected) for line in found), "\n".join(found)


def test_an_engine_without_a_lock_file_says_why(tmp_path: Path) -> None:
    path = changed(tmp_path, ARC)
    engines = tmp_path / "engines.yaml"
    text = engines.read_text()
    start = text.index("  untested: >-", text.index("\nxpu:"))
    text = text[:start] + text[text.index("  environment:", start) :]
    engines.write_text(text.replace("  lock: vllm-xpu-0.33.0.txt\n", ""))
    with pytest.raises(ProfileError, match=r"engines.yaml:\d+: xpu.lock: nothing; expected a file in salt/engine"):
        load_profile(path)


def test_a_digest_changes_with_what_is_in_force(tmp_path: Path) -> None:
    def digest(*replacements: tuple[str, str]) -> str:
        return load_profile(changed(tmp_path, ARC, *replacements)).digest

    first = digest()
    assert first == digest(("# Cluster v0.1", "# Another comment"))
    assert first != digest(("cores: 8", "cores: 6"))
    engines = tmp_path / "engines.yaml"
    path = changed(tmp_path, ARC)
    engines.write_text(engines.read_text().replace("CCL_ATL_TRANSPORT: ofi", "CCL_ATL_TRANSPORT: mpi"))
    assert load_profile(path).digest != first
    assert isinstance(load_profile(path), Profile)
