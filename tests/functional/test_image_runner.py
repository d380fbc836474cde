"""The runner `image`: what the CLI asks of it, and what a node runs is never collected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import salt._logging
from salt.exceptions import CommandExecutionError

from bottleneck.profile import find_profile
from bottleneck.profile.boot_types import Stage
from netboot.boot import storage
from netboot.boot.state import (
    Boot,
    NodeState,
    Reached,
    State,
)
from netboot.image import commands, operations
from netboot.image.commands import BuildError
from netboot.image.store import Store
from tests.by_file import load
from tests.unit.image_store_builder import put_image

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def runner(tmp_path: Path) -> Any:
    # Salt's early handler would write to a stream that pytest has closed by then.
    salt._logging.shutdown_temp_handler()
    module = load("_runners/image.py", "image_runner")
    module.__opts__ = {
        "cluster_profile": str(find_profile("embedded")),
        "cluster_images": str(tmp_path / "images"),
        "cluster_directory": str(tmp_path / "cluster"),
    }
    module.sent = []
    module.__salt__ = {"event.send": lambda tag, data: module.sent.append((tag, data))}
    return module


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "images")


def boot(number: int, image: str, *stages: Stage) -> Boot:
    reached = tuple(Reached(stage=stage, at=float(number)) for stage in stages)
    return Boot(id=str(number), began=float(number), image=image, mac="", minion_id="node0", reached=reached)


def test_the_way_of_an_image(runner: Any, store: Store) -> None:
    old, new = put_image(store, "old"), put_image(store, "new")
    runner.activate(old.digest)
    runner.activate(new.digest)
    assert runner.active()["digest"] == new.digest
    assert runner.active(profile="embedded")["previous"] == old.digest
    assert runner.show()["digest"] == new.digest
    assert {each["digest"] for each in runner.list_()["images"]} == {old.digest, new.digest}
    assert runner.diff()["old"] == old.digest
    assert runner.rollback(profile="embedded")["active"] == old.digest
    assert runner.sent == [("cluster/image/changed", {"profile": "embedded"})] * 3
    assert runner.lock()["lines"] == ["iproute2=6.15.0-1"]


def test_what_nodes_run_stays(runner: Any, store: Store) -> None:
    days = [put_image(store, str(day), created=f"2026-11-{day:02}T00:00:00Z").digest for day in range(1, 6)]
    # It runs the second, and was given the third, which has not come up yet.
    boots = (boot(1, days[0], "enrolled"), boot(2, days[1], "enrolled"), boot(3, days[2], "script"))
    state = State(nodes={"node0": NodeState(boots=boots)})
    storage.write(Path(runner.__opts__["cluster_directory"]) / "boot", state)
    assert runner.gc(keep=1)["images"] == [days[3], days[0]]


def test_nothing_goes_while_it_is_not_known_what_runs(runner: Any, store: Store) -> None:
    put_image(store, "old", created="2026-11-01T00:00:00Z")
    put_image(store, "new", created="2026-11-02T00:00:00Z")
    folder = Path(runner.__opts__["cluster_directory"]) / "boot"
    folder.mkdir(parents=True)
    (folder / storage.FILE).write_text("{")
    with pytest.raises(CommandExecutionError, match="not known what the nodes run"):
        runner.gc(keep=1)
    assert len(store.images()) == 2


def test_errors_are_sentences(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandExecutionError, match="there is no image ffff"):
        runner.show("ffff")
    with pytest.raises(CommandExecutionError, match=r"recipe\.yaml"):
        runner.build(recipe="/nowhere/recipe.yaml")
    built: list[Any] = []

    def fail(recipe: Any, store: Any, progress: Any, profile: Any) -> None:
        built.append((recipe.name, profile))
        raise ZeroDivisionError

    monkeypatch.setattr(operations, "build_image", fail)
    with pytest.raises(ZeroDivisionError):
        runner.build()
    assert built == [("base", "embedded")]


def test_the_reason_that_apt_marks_is_the_one_that_is_shown() -> None:
    script = "echo reading; echo 'E: Unable to locate package x'; echo 'E: setup failed'; echo removing; exit 25"
    with pytest.raises(BuildError, match=r"^sh ended with 25: E: Unable to locate package x$"):
        commands.run(["sh", "-c", script], {})
    with pytest.raises(BuildError, match=r"^sh ended with 3: one \| two$"):
        commands.run(["sh", "-c", "echo one; echo two; exit 3"], {})
