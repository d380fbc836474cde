"""An image on trial, as the boot service settles it while time passes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bottleneck.profile import load_profile
from netboot.boot.events import Enrolled, ScriptGiven
from netboot.boot.service import BootService
from netboot.boot.settings import BootNode, Settings
from netboot.image.canary import Canary
from netboot.image.store import Store
from tests import boot_profile
from tests.unit.image_store_builder import put_image

MAC = "02:99:07:00:00:10"


class Keys:
    def admit(self, minion_id: str, pub: str) -> None:
        raise AssertionError("no key is admitted here")

    def master_finger(self) -> str:
        return ""


class Trial:
    """A boot service with two images, the new one on trial on node0 from second 1000 to 1600."""

    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.announced: list[tuple[str, Any]] = []
        self.store = Store(folder / "images")
        self.old, self.new = (put_image(self.store, text).digest for text in ("old", "new"))
        link = {"interface": "eth0", "mac": MAC, "address": "127.0.0.10"}
        other = {"interface": "eth0", "mac": "02:99:07:00:00:11", "address": "127.0.0.11"}
        described = boot_profile.described(
            "trial",
            {"address": "127.0.0.1", "interface": "lo"},
            "127.0.0.0/24",
            {"node0": link, "node1": other},
            {"kernel_line": []},
        )
        profile = load_profile(boot_profile.write(folder / "trial.yaml", described))
        self.service = BootService(
            Settings.of(profile),
            images_directory=self.store.root,
            models_directory=self.store.root / "models",
            record_directory=folder / "boot",
            keys=Keys(),
            connection=lambda _: None,
            alive=self.alive,
            mac_of=lambda _: None,
            announce=lambda tag, data: self.announced.append((tag, data)),
            clock=lambda: self.now,
        )
        self.store.activate("trial", self.old)
        self.store.begin_trial(Canary("trial", "node0", self.new, started=1000.0, deadline=1600.0))

    async def alive(self, node: BootNode) -> bool:
        return False

    def boots(self, image: str, at: float) -> None:
        self.now = at
        given = ScriptGiven(
            now=at, node="node0", boot="b" * 32, nonce="n", expires=at + 300, image=image, mac=MAC, minion_id="node0"
        )
        self.service.tell(given)

    def tick(self, at: float) -> None:
        self.now = at
        self.service.tick()

    def actions(self) -> list[str]:
        return [data["action"] for tag, data in self.announced if tag == "cluster/image/trial"]


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    yield Trial(tmp_path)


def test_it_waits_while_the_node_boots(trial: Trial) -> None:
    trial.boots(trial.new, 1010.0)
    trial.tick(1100.0)
    assert trial.actions() == [] and trial.store.active("trial") == trial.old


def test_a_node_that_enrols_brings_the_image_to_all(trial: Trial) -> None:
    trial.boots(trial.new, 1010.0)
    trial.service.tell(Enrolled(now=1050.0, node="node0", boot="b" * 32, key="k"))
    trial.tick(1051.0)
    assert trial.actions() == ["promote"]
    assert trial.store.active("trial", "node1") == trial.new and trial.store.previous("trial") == trial.old
    trial.tick(1052.0)
    assert trial.actions() == ["promote"]


@pytest.mark.parametrize("booted", [True, False])
def test_a_node_that_stays_away_loses_the_image(trial: Trial, booted: bool) -> None:
    if booted:
        trial.boots(trial.new, 1010.0)
    trial.tick(1599.0)
    assert trial.actions() == []
    trial.tick(1600.0)
    assert trial.actions() == ["rollback"]
    assert trial.store.active("trial", "node0") == trial.old and trial.store.canary("trial") is None


def test_a_node_that_comes_back_with_the_old_image_proves_nothing(trial: Trial) -> None:
    trial.boots(trial.old, 1010.0)
    trial.service.tell(Enrolled(now=1050.0, node="node0", boot="b" * 32, key="k"))
    trial.tick(1100.0)
    assert trial.actions() == []
    trial.tick(1700.0)
    assert trial.actions() == ["rollback"]


def test_an_image_that_is_gone_ends_the_trial(trial: Trial) -> None:
    trial.boots(trial.new, 1010.0)
    trial.service.tell(Enrolled(now=1050.0, node="node0", boot="b" * 32, key="k"))
    (trial.store.folder(trial.new) / "manifest.json").unlink()
    trial.tick(1051.0)
    assert trial.actions() == ["rollback"]
    assert trial.store.active("trial", "node0") == trial.old
