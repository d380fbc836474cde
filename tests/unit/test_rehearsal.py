"""The rehearsal stays possible: its profile, and three images that differ as they are meant to."""

from __future__ import annotations

from pathlib import Path

import pytest

from bottleneck.profile import load_profile
from bottleneck.profile.hardware_checks import refuse_open
from bottleneck.profile.types import Profile
from netboot.control_node import control_pillar
from netboot.image.recipe import recipe_digest
from rehearsal import images
from rehearsal.debian import CLUSTER, REPOSITORY
from rehearsal.run import NODES


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    for source in (REPOSITORY / "rehearsal" / "profile").iterdir():
        (tmp_path / source.name).write_text(source.read_text().replace("PORT", "4711"))
    return load_profile(tmp_path / "v1.yaml")


def test_the_profile_is_one_that_can_be_deployed_and_names_the_machines(profile: Profile) -> None:
    refuse_open(profile)
    assert profile.control.interface == CLUSTER
    macs = {name: (node.links["ethernet"].mac, node.firmware == "uefi") for name, node in profile.nodes.items()}
    assert macs == NODES


def test_the_control_node_can_be_set_up_from_it(profile: Profile) -> None:
    pillar = control_pillar(profile, REPOSITORY, "/opt/cluster/venv/bin")
    assert pillar["control"]["addresses"][0] == "10.97.0.1/24"
    assert pillar["control"]["master"]["engines"] == [{"telemetry": {}}, {"boot": {}}]


def test_the_three_images_differ_as_they_are_meant_to(profile: Profile, tmp_path: Path) -> None:
    recipes = images.recipes(profile, tmp_path)
    assert len({recipe_digest(recipe) for recipe in recipes.values()}) == 3
    first, second, broken = (recipes[name] for name in (images.FIRST, images.SECOND, images.BROKEN))
    assert set(second.packages) - set(first.packages) == {images.ADDED}
    assert broken.packages == second.packages
    # What makes it broken: what every other image starts is not started.
    assert set(second.units.enable) - set(broken.units.enable) == set(images.NEEDED)
