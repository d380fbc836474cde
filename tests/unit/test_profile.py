"""Loading profiles: what is read, and what is said about one that is not valid."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bottleneck.profile import ProfileError, find_profile, list_profiles, load_profile, profile_name
from bottleneck.profile.paths import repository_directory
from tests.profile_variants import changed
from tests.unit.profile_mistakes import SINGLE_PROBLEMS

PROFILES = repository_directory() / "profiles"
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLUSTER_PROFILES_DIR", raising=False)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write the embedded profile with some of its text replaced, beside an engine map."""

    def write(*replacements: tuple[str, str]) -> Path:
        return changed(tmp_path, "embedded", *replacements)

    return write


def problems(path: Path) -> list[str]:
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    return str(caught.value).splitlines()


def line_of(path: Path, text: str) -> int:
    return next(number for number, line in enumerate(path.read_text().splitlines(), 1) if text in line)


def test_embedded_is_read_in_base_units() -> None:
    profile = load_profile(find_profile("embedded"))
    assert (profile.name, profile.version, profile.kind) == ("embedded", "1.0", "lab")
    assert profile.networks["direct"].rate_bytes_per_second == 1e9
    assert profile.networks["ethernet"].mtu_bytes == 1500
    assert profile.networks["ethernet"].prefix_length == 24
    assert profile.nodes["node0"].memory_bytes == 5 * 2**30
    assert profile.nodes["node0"].accelerator.memory_bytes == 3 * 2**30
    assert profile.deployments["tp2"].server.kv_cache_memory_bytes == 256 * 2**20
    assert profile.sampler.rate_hertz == 10
    assert profile.sampler.batch_interval_seconds == 1
    assert profile.telemetry.retention_seconds == 86400
    assert profile.engines["cpu"].fallback_index is not None
    assert profile.engine_of("node1").kind == "cpu"


def test_anchors_and_merges_work(write: Write) -> None:
    merged = "{<<: *server, max_num_seqs: 1}"
    path = write(
        ("    link: direct\n    server: *server\n  replicas", f"    link: direct\n    server: {merged}\n  replicas")
    )
    profile = load_profile(path)
    assert profile.deployments["replicas"].server == profile.deployments["tp2"].server
    assert profile.deployments["pp2"].server.max_num_seqs == 1
    assert profile.deployments["pp2"].server.max_model_len == 2048


def test_sections_with_defaults_may_be_left_out(write: Write) -> None:
    path = write()
    text = path.read_text()
    path.write_text(text[: text.index("workload:")])
    profile = load_profile(path)
    assert profile.workload.output_tokens == 32
    assert profile.telemetry.window_seconds == 15
    assert profile.sampler.acknowledge_interval_seconds == 10
    assert profile.telemetry.exporter_port == 9477


def test_a_profile_that_calls_its_section_by_the_older_name_is_read(write: Write) -> None:
    """Recorded runs have such profiles."""
    path = write(("\ntelemetry:\n", "\nperf:\n"))
    assert load_profile(path).telemetry == load_profile(write()).telemetry
    assert load_profile(path).telemetry.model_fields_set


def test_a_profile_in_a_runs_folder_uses_the_repositorys_engine_map(tmp_path: Path) -> None:
    shutil.copy(PROFILES / "embedded.yaml", tmp_path / "profile.yaml")
    assert "cpu" in load_profile(tmp_path / "profile.yaml").engines


@pytest.mark.parametrize("name", SINGLE_PROBLEMS)
def test_one_mistake_is_named_with_its_line_and_key(write: Write, name: str) -> None:
    replacement, marker, expected = SINGLE_PROBLEMS[name]
    path = write(replacement)
    found = problems(path)
    matching = [line for line in found if line.endswith(expected)]
    assert matching, "\n".join(found)
    if marker is not None:
        assert matching[0] == f"{path}:{line_of(path, marker)}: {expected}"


ALONE = ["unknown key", "misspelt key", "missing address", "bad unit", "duplicate MAC", "unknown kind of accelerator"]


@pytest.mark.parametrize("name", ALONE)
def test_one_mistake_is_one_problem(write: Write, name: str) -> None:
    assert len(problems(write(SINGLE_PROBLEMS[name][0]))) == 1


def test_memory_that_does_not_suffice_shows_the_arithmetic(write: Write) -> None:
    path = write(("kv_cache_memory: 256 MiB", "kv_cache_memory: 2 GiB"))
    found = problems(path)
    line = line_of(path, "  tp2:")
    assert found[0] == (
        f"{path}:{line}: deployments.tp2: does not fit node0: 3.57 GiB = weights 38.2 MiB + KV cache 2 GiB"
        " + activations 33 MiB + engine 1.5 GiB; expected at most 3 GiB, the memory of its cpu accelerator"
    )
    assert sum("does not fit" in problem for problem in found) == 7


def test_all_problems_are_reported_at_once_in_the_order_of_lines(write: Write) -> None:
    path = write(
        ("hostname: control", "hostname: control_0_1"),
        ("rate: 8 Gbit/s", "rate: 8 gbit/s"),
        ("02:77:00:00:00:11", "02:77:00:00:00:10"),
        ("layers: 8", "layers: eight"),
        ("default_deployment: tp2", "default_deployment: tp3"),
        ("spool_batches: 600", "spool_batch: 600"),
    )
    found = problems(path)
    keys = [problem.split(": ")[1] for problem in found]
    assert keys == [
        "control.hostname",
        "networks.direct.rate",
        "nodes.node1.links.ethernet.mac",
        "model.shape.layers",
        "default_deployment",
        "sampler.spool_batch",
    ]


def test_a_broken_node_is_not_reported_as_unknown(write: Write) -> None:
    found = problems(write(("hostname: node1", "hostname: node_1")))
    assert len(found) == 1


def test_a_mistake_behind_an_anchor_is_reported_once(write: Write) -> None:
    found = problems(write(("max_num_seqs: 16", "max_num_seqz: 16")))
    assert len(found) == 1
    assert "unknown key (did you mean max_num_seqs?)" in found[0]


@pytest.mark.parametrize("section", ["networks", "nodes", "model", "control", "deployments"])
def test_a_section_that_is_no_mapping_is_one_problem(write: Write, section: str) -> None:
    path = write()
    text = path.read_text()
    start = text.index(f"\n{section}:\n") + 1
    end = text.index("\n\n", start) if section != "deployments" else text.index("default_deployment:")
    # The anchor goes with the deployments.
    path.write_text(text[:start] + f"{section}: [a]\n" + text[end:])
    found = problems(path)
    assert found == [f"{path}:{line_of(path, f'{section}: [a]')}: {section}: a list; expected a mapping"]


def test_point_to_point_has_two_ends(write: Write) -> None:
    node2 = (
        "  node2:\n    hostname: node2\n    cores: 1\n    memory: 5 GiB\n"
        "    accelerator: {kind: cpu, count: 1, memory: 3 GiB}\n    links:\n"
        '      ethernet: {interface: eth0, mac: "02:77:00:00:00:12", address: 10.77.0.12}\n'
        '      direct: {interface: usb4, mac: "02:77:00:00:01:12", address: 10.77.1.12}\n\nmodel:\n'
    )
    found = problems(write(("\nmodel:\n", node2)))
    assert len(found) == 1
    assert found[0].endswith("point-to-point, with links of node0, node1, node2; expected two ends, or kind switch")


def test_every_node_is_on_the_control_network(write: Write) -> None:
    link = '      ethernet: {interface: eth0, mac: "02:77:00:00:00:11", address: 10.77.0.11}\n'
    found = problems(write((link, "")))
    assert any("nodes.node1.links: no link on ethernet; expected one" in problem for problem in found)


def test_a_link_that_a_node_lacks(write: Write) -> None:
    link = '      direct: {interface: usb4, mac: "02:77:00:00:01:11", address: 10.77.1.11}\n'
    found = problems(write((link, "")))
    expected = "deployments.tp2.link: direct, on which node1 has no link; expected a network of all its nodes"
    assert any(problem.endswith(expected) for problem in found)


def test_overlapping_networks(write: Write) -> None:
    found = problems(write(("subnet: 10.77.1.0/24", "subnet: 10.77.0.0/16")))
    expected = "networks.direct.subnet: 10.77.0.0/16 overlaps 10.77.0.0/24 of ethernet; expected a range of its own"
    assert [problem.split(": ", 1)[1] for problem in found] == [expected]


def test_a_broken_engine_map_is_named(write: Write) -> None:
    path = write()
    engines = path.parent / "engines.yaml"
    engines.write_text(engines.read_text().replace("preload:", "preloads:"))
    with pytest.raises(ProfileError, match=r"engines.yaml:\d+: cpu.preloads: unknown key \(did you mean preload\?\)"):
        load_profile(path)


def test_find_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER_PROFILES_DIR", str(tmp_path))
    for name in ("embedded.yaml", "engines.yaml", "arc-a770/v0.1.yaml", "arc-a770/v0.9.yaml", "arc-a770/v0.10.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert find_profile("embedded") == tmp_path / "embedded.yaml"
    assert find_profile(str(tmp_path / "embedded.yaml")) == tmp_path / "embedded.yaml"
    assert find_profile("arc-a770/v0.1") == tmp_path / "arc-a770/v0.1.yaml"
    assert find_profile("arc-a770") == tmp_path / "arc-a770/v0.10.yaml"
    names = ["arc-a770/v0.1", "arc-a770/v0.10", "arc-a770/v0.9", "embedded"]
    assert [profile_name(path) for path in list_profiles()] == names
    for name in ("embeded", "engines", ""):
        with pytest.raises(ProfileError, match="expected a file or one of"):
            find_profile(name)
    with pytest.raises(ProfileError, match=r"did you mean embedded\?"):
        find_profile("embeded")


@pytest.mark.parametrize("path", list_profiles(), ids=profile_name)
def test_every_profile_of_the_repository_is_valid(path: Path) -> None:
    assert load_profile(path).deployments
