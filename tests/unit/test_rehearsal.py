"""The rehearsal stays possible: its profile, and three images that differ as they are meant to."""

from __future__ import annotations

from pathlib import Path

import pytest

from bottleneck.plan.nodes import node_pillar, worker_specs
from bottleneck.profile import load_profile
from bottleneck.profile.hardware_checks import refuse_open
from bottleneck.profile.types import Profile
from netboot.control_node import control_pillar
from netboot.image.recipe import recipe_digest
from rehearsal import images, model, trace
from rehearsal.debian import CLUSTER, REPOSITORY
from rehearsal.run import BEGINNINGS, FURTHER_IMAGES, ORDER, SKIPPABLE, TITLES, chosen, works
from rehearsal.serving import port_problems, scores
from rehearsal.stages import NODES, Rehearsal
from rehearsal.table import Stages


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    for source in (REPOSITORY / "rehearsal" / "profile").iterdir():
        (tmp_path / source.name).write_text(source.read_text().replace("PORT", "4711"))
    return load_profile(tmp_path / "v1.yaml")


def test_the_profile_is_one_that_can_be_deployed_and_names_the_machines(profile: Profile) -> None:
    refuse_open(profile)
    assert profile.control.interface == CLUSTER
    macs = {
        name: (node.links["ethernet"].mac, node.links["direct"].mac, node.firmware == "uefi")
        for name, node in profile.nodes.items()
    }
    assert macs == NODES


def test_the_control_node_can_be_set_up_from_it(profile: Profile) -> None:
    pillar = control_pillar(profile, REPOSITORY, "/opt/cluster/venv/bin")
    assert pillar["control"]["addresses"][0] == "10.97.0.1/24"
    assert pillar["control"]["master"]["engines"] == [{"telemetry": {}}, {"boot": {}}]


def test_the_three_images_differ_as_they_are_meant_to(profile: Profile, tmp_path: Path) -> None:
    recipes = images.recipes(profile)
    assert len({recipe_digest(recipe) for recipe in recipes.values()}) == 3
    first, second, broken = (recipes[name] for name in (images.FIRST, images.SECOND, images.BROKEN))
    assert set(second.packages) - set(first.packages) == {images.ADDED}
    assert broken.packages == second.packages
    # What makes it broken: what every other image starts is not started.
    assert set(second.units.enable) - set(broken.units.enable) == set(images.NEEDED)


def test_the_engine_comes_with_the_image(profile: Profile) -> None:
    first = images.recipes(profile)[images.FIRST]
    (layer,) = first.layers
    engine = profile.engine_of("node0")
    assert layer.prefix == engine.directory() and layer.root_folder
    assert "llama.cpp-tools-extra" in layer.root_folder.packages and layer.root_folder.marker
    assert "nftables" in first.packages, "no node reaches the archive: what the engine's states install is there"


def test_the_deployment_spreads_over_the_wire_between_the_nodes(profile: Profile) -> None:
    head, follower = sorted(worker_specs(profile), key=lambda worker: worker.rank)
    assert head.link == follower.link == "direct"
    assert "10.97.1.11:50052" in head.argv and "10.97.1.11" in follower.argv
    pillar = node_pillar(profile, "node1")
    assert pillar["control"]["models"] == "http://10.97.0.1:8069/models"
    # Made here under the very names by which the nodes ask for them.
    asked = [pillar["model"]["directory"], *(each["directory"] for each in pillar["conversions"])]
    assert [str(folder) for folder in model.folders(profile)] == asked


def test_the_stages_are_those_that_are_run(tmp_path: Path) -> None:
    assert list(works(Rehearsal(tmp_path, print, tmp_path / "log"))) == list(TITLES)
    assert set(SKIPPABLE) < set(TITLES)
    assert chosen(None, ()) == list(TITLES)
    assert chosen("image", ("doctor",))[:3] == ["boot-control", "image", "nodes"]
    assert Stages(None, ORDER).includes("rollback")
    assert not Stages("undeploy", ORDER).includes(*FURTHER_IMAGES)
    assert Stages("reprovision", ORDER).includes(*FURTHER_IMAGES)
    assert set(BEGINNINGS) < set(ORDER)


def test_ports_that_are_not_as_they_should_be_are_named() -> None:
    seen = {"4505": "open", "9477": "TimeoutError", "22": "open", "9090": "TimeoutError"}
    found = port_problems(seen, {"events": 4505, "acknowledgements": 9477, "boot": 8069}, {"ssh": 22, "metrics": 9090})
    assert found == [
        "acknowledgements (port 9477): TimeoutError; expected open",
        "boot (port 8069): not tried; expected open",
        "ssh (port 22) is open",
    ]


def test_scores_are_of_our_own_units() -> None:
    listed = """UNIT                             EXPOSURE PREDICATE HAPPY
cluster-worker-layers2-0.service      9.6 UNSAFE    x
dbus.service                          9.3 UNSAFE    x
salt-minion.service                   9.6 UNSAFE    x
"""
    assert scores(listed) == {"cluster-worker-layers2-0.service": 9.6, "salt-minion.service": 9.6}


def test_the_trace_is_a_table_up_to_the_first_token() -> None:
    def boot(*lengths: tuple[str, float]) -> dict[str, object]:
        found, moment = [], 100.0
        for name, seconds in lengths:
            found.append({"stage": name, "start": moment, "seconds": seconds, "attributed": True})
            moment += seconds
        return {"began": 100.0, "stages": found}

    first = trace.stages(boot(("dhcp", 5.0), ("applied", 20.0), ("idle", 100.0), ("first_token", 7.5)))
    second = trace.stages(boot(("dhcp", 6.0), ("applied", 19.0)))
    assert trace.total_seconds(first) == 32.5
    assert trace.table({"node0": first, "node1": second}).splitlines() == [
        "| stage | node0: s | at | node1: s | at |",
        "|---|---|---|---|---|",
        "| `dhcp` | 5.0 | 5.0 | 6.0 | 6.0 |",
        "| `applied` | 20.0 | 25.0 | 19.0 | 25.0 |",
        "| `idle` | 100.0 | 125.0 | - | - |",
        "| `first_token` | 7.5 | 132.5 | - | - |",
    ]
    assert trace.stages({}) == []


def test_nodes_that_boot_again_are_waited_for_though_an_earlier_boot_is_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier, later = ({"id": name, "stages": [{"stage": "applied"}]} for name in ("a", "b"))
    under_way = {"id": "b", "stages": [{"stage": "kernel"}]}
    seen = iter([earlier, earlier, under_way, later])

    class Laptop:
        def cluster_json(self, *words: str, timeout: float) -> dict[str, object]:
            boot = next(seen)
            return {"nodes": {name: {"stage": "", "stuck": None, "boot": boot} for name in NODES}}

    monkeypatch.setattr("rehearsal.stages.wait_for", lambda reached, *_: any(reached() for _ in range(9)))
    rehearsal = Rehearsal(tmp_path, lambda text: None, tmp_path / "log")
    rehearsal.laptop = Laptop()  # type: ignore[assignment]
    rehearsal.boot_nodes()
    assert next(seen, None) is None
