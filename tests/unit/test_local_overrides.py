"""Overlays of a profile, and the difference of two."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bottleneck.profile import ProfileError, find_profile, list_profiles, load_profile
from bottleneck.profile.diff import profile_differences
from bottleneck.profile.hardware_checks import open_points
from bottleneck.profile.local_overrides import copy_profile, overlay_path, set_mac
from bottleneck.profile.paths import repository_directory
from cli.profile import app

PROFILES = repository_directory() / "profiles"
MACS = {"node0": "d8:bb:c1:00:00:01", "node1": "d8:bb:c1:00:00:02"}
runner = CliRunner()


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the Arc profile in a folder of profiles of its own."""
    monkeypatch.setenv("CLUSTER_PROFILES_DIR", str(tmp_path))
    (tmp_path / "arc-a770").mkdir()
    shutil.copy(PROFILES / "engines.yaml", tmp_path)
    shutil.copy(PROFILES / "arc-a770" / "v0.1.yaml", tmp_path / "arc-a770")
    return tmp_path / "arc-a770" / "v0.1.yaml"


def test_an_overlay_is_no_profile_of_its_own(profile: Path) -> None:
    set_mac(profile, "node0", "ethernet", MACS["node0"])
    assert overlay_path(profile).name == "v0.1.local.yaml"
    assert list_profiles() == [profile]
    assert find_profile("arc-a770") == profile


def test_macs_are_filled_in_beside_the_profile(profile: Path) -> None:
    before = profile.read_bytes()
    digest = load_profile(profile).digest
    for node, mac in MACS.items():
        set_mac(profile, node, "ethernet", mac.upper())
    loaded = load_profile(profile)
    assert {node: loaded.nodes[node].links["ethernet"].mac for node in MACS} == MACS
    assert loaded.nodes["node0"].links["ethernet"].address == "10.40.0.10"
    assert not open_points(loaded)
    assert loaded.digest != digest
    assert profile.read_bytes() == before
    assert [path.name for path in profile.parent.iterdir() if path.name.startswith(".")] == []


def test_a_mistake_in_an_overlay_is_named_there(profile: Path) -> None:
    overlay = overlay_path(profile)
    overlay.write_text("nodes:\n  node1:\n    cores: many\n    links:\n      ethernet: {mca: 1}\nmodel: {name: ''}\n")
    with pytest.raises(ProfileError) as caught:
        load_profile(profile)
    lines = caught.value.lines()
    assert [line.partition(": ")[0] for line in lines] == [f"{overlay}:3", f"{overlay}:5", f"{overlay}:6"]
    assert "nodes.node1.links.ethernet.mca: unknown key (did you mean mac?)" in lines[1]


def test_a_mac_of_two_nodes_is_a_problem(profile: Path) -> None:
    set_mac(profile, "node0", "ethernet", MACS["node0"])
    set_mac(profile, "node1", "ethernet", MACS["node0"])
    with pytest.raises(ProfileError, match=r"v0.1.local.yaml:\d+: nodes.node1.links.ethernet.mac: .*a MAC address of"):
        load_profile(profile)


def test_what_is_no_mac_is_not_written(profile: Path) -> None:
    with pytest.raises(ProfileError, match="expected a MAC address such as"):
        set_mac(profile, "node0", "ethernet", "d8:bb")
    assert not overlay_path(profile).exists()


def test_a_copy_means_the_same(profile: Path, tmp_path: Path) -> None:
    set_mac(profile, "node0", "ethernet", MACS["node0"])
    run = tmp_path / "run"
    run.mkdir()
    copy_profile(profile, run / "profile.yaml")
    assert load_profile(run / "profile.yaml").digest == load_profile(profile).digest


def test_the_command_that_fills_in(profile: Path) -> None:
    refused = runner.invoke(app, ["check", "arc-a770", "--deploy"])
    assert refused.exit_code == 1
    assert "set-mac node0 MAC --profile arc-a770" in refused.stderr
    checked = json.loads(runner.invoke(app, ["check", "arc-a770", "--json"]).stdout)
    assert checked["valid"] is True and checked["deployable"] is False and len(checked["open"]) == 2
    for node, mac in MACS.items():
        done = runner.invoke(app, ["set-mac", node, mac, "--profile", "arc-a770", "--json"])
        assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["deployable"] is True
    assert runner.invoke(app, ["check", "arc-a770", "--deploy"]).exit_code == 0
    assert runner.invoke(app, ["set-mac", "node7", MACS["node0"], "--profile", "arc-a770"]).exit_code == 2
    assert runner.invoke(app, ["set-mac", "node0", "x", "--profile", "arc-a770"]).exit_code == 1


def test_differences_are_reported_by_key_and_unit(profile: Path) -> None:
    other = profile.with_name("v0.2.yaml")
    text = profile.read_text().replace("rate: 10 Gbit/s", "rate: 20 Gbit/s").replace("cores: 8", "cores: 12")
    other.write_text(text.replace('version: "0.1"', 'version: "0.2"').replace("  canary: node0\n", ""))
    found = {each.key: each for each in profile_differences(load_profile(profile), load_profile(other))}
    assert set(found) == {"version", "networks.usb4.rate", "nodes.node0.cores", "nodes.node1.cores", "boot.canary"}
    rate = found["networks.usb4.rate"]
    assert rate.before and rate.after
    assert (rate.kind, rate.before.value, rate.before.unit) == ("changed", 1.25e9, "B/s")
    assert (rate.before.text, rate.after.text) == ("10 Gbit/s", "20 Gbit/s")
    assert (found["boot.canary"].kind, found["boot.canary"].after) == ("removed", None)
    assert not profile_differences(load_profile(profile), load_profile(profile))


def test_diff_as_a_command(profile: Path) -> None:
    shutil.copy(PROFILES / "embedded.yaml", profile.parent.parent)
    data = json.loads(runner.invoke(app, ["diff", "arc-a770", "embedded", "--json"]).stdout)
    by_key = {row["key"]: row for row in data["differences"]}
    assert by_key["nodes.node0.accelerator.kind"]["kind"] == "changed"
    assert by_key["engines.cpu.lock"]["kind"] == "added"
    assert by_key["networks.usb4.mtu"]["before"] == {"value": 9000, "unit": "B", "text": "9000 B"}
    assert data["before"]["digest"] != data["after"]["digest"]
    human = runner.invoke(app, ["diff", "arc-a770", "embedded"]).stdout
    assert "~ nodes.node0.accelerator.kind: xpu -> cpu" in human
    assert runner.invoke(app, ["diff", "arc-a770", "nothing"]).exit_code == 1
