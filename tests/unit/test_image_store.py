"""The store of images: whole or not at all, one active, a way back, nothing removed that is needed."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from netboot.image import operations
from netboot.image.canary import Canary
from netboot.image.manifest import MANIFEST
from netboot.image.store import Store, StoreError
from tests.unit.image_store_builder import names, put_image


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "images")


def trial(digest: str, node: str = "node0") -> Canary:
    return Canary("embedded", node, digest, started=100.0, deadline=700.0)


def test_an_image_is_kept_once_and_read_only(store: Store) -> None:
    first = put_image(store, "one")
    again = put_image(store, "one", created="2027-01-01T00:00:00Z")
    assert first.digest == again.digest
    assert [each.created for each in store.images()] == ["2026-11-24T09:00:00Z"]
    assert {path.stat().st_mode & 0o777 for path in store.folder(first.digest).iterdir()} == {0o444}
    assert names(store.root) == {"images", ".lock-store"}


def test_another_layer_makes_another_image(store: Store) -> None:
    plain = put_image(store, "one")
    layered = put_image(store, "one", layers={"driver": b"firmware"})
    assert plain.digest != layered.digest
    assert store.layer_path(layered.layers[0].sha256).read_bytes() == b"firmware"


def test_activation_keeps_the_one_before_and_goes_back(store: Store) -> None:
    old, new = put_image(store, "old"), put_image(store, "new")
    assert store.active("embedded") is None
    store.activate("embedded", old.digest)
    assert store.previous("embedded") is None
    store.activate("embedded", new.digest)
    assert (store.active("embedded"), store.previous("embedded")) == (new.digest, old.digest)
    # Twice the same leaves the way back.
    store.activate("embedded", new.digest)
    assert store.previous("embedded") == old.digest
    assert store.rollback("embedded") == (new.digest, old.digest)
    assert (store.active("embedded"), store.previous("embedded")) == (old.digest, new.digest)
    assert store.active("embedded", "node1") == old.digest


def test_the_link_is_relative_and_readable_through(store: Store) -> None:
    image = put_image(store, "one")
    store.activate("embedded", image.digest)
    link = store.root / "active" / "embedded"
    assert link.readlink() == Path("../images") / image.digest
    assert json.loads((link / MANIFEST).read_text())["digest"] == image.digest


def test_a_reader_never_sees_no_image_while_it_changes(store: Store) -> None:
    images = [put_image(store, text).digest for text in ("a", "b")]
    store.activate("embedded", images[0])
    seen: list[str | None] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            digest = store.active("embedded")
            seen.append(store.manifest(digest).digest if digest else None)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        store.activate("embedded", images[number % 2])
    done.set()
    reader.join()
    assert seen and set(seen) <= set(images)


def test_what_is_not_there_cannot_be_made_active(store: Store) -> None:
    image = put_image(store, "one")
    with pytest.raises(StoreError, match="there is no image 0123456789abcdef"):
        store.activate("embedded", "0123456789abcdef")
    with pytest.raises(StoreError, match=f"there is no image ffff; expected one of {image.digest}"):
        store.resolve("ffff")
    with pytest.raises(StoreError, match="no previous image"):
        store.rollback("embedded")
    with pytest.raises(StoreError, match=r"profile '\.\./x'"):
        store.activate("../x", image.digest)


def test_a_beginning_names_an_image_when_it_is_the_only_one(store: Store) -> None:
    digests = sorted(put_image(store, str(number)).digest for number in range(40))
    assert store.resolve(digests[0][:12]) == digests[0]
    beginnings = [digest[:4] for digest in digests]
    assert all(store.resolve(text) for text in beginnings if beginnings.count(text) == 1)
    with pytest.raises(StoreError, match="there is no image /etc"):
        store.resolve("/etc")


def test_damage_is_seen(store: Store) -> None:
    image = put_image(store, "one", layers={"driver": b"firmware"})
    assert store.verify(image.digest) == []
    root = store.folder(image.digest) / "root.squashfs"
    root.chmod(0o644)
    root.write_text("other")
    store.layer_path(image.layers[0].sha256).unlink()
    problems = store.verify(image.digest)
    assert len(problems) == 2
    assert "root.squashfs has sha256" in problems[0] and problems[1].endswith("is not there")


def test_records_that_cannot_be_read_are_named(store: Store) -> None:
    old, new = put_image(store, "old"), put_image(store, "new")
    store.activate("embedded", old.digest)
    store.begin_trial(trial(new.digest))
    (store.root / "canary/embedded.json").write_text('{"profile": "embedded"}')
    with pytest.raises(StoreError, match=r"canary/embedded\.json: node: field required; .*cluster image activate"):
        store.canary("embedded")
    (store.folder(new.digest) / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match=rf"no image {new.digest}: .*manifest\.json: not JSON"):
        store.manifest(new.digest)
    assert [each.digest for each in store.images()] == [old.digest]


class TestTrial:
    def test_one_node_gets_it_the_others_do_not(self, store: Store) -> None:
        old, new = put_image(store, "old"), put_image(store, "new")
        store.activate("embedded", old.digest)
        store.begin_trial(trial(new.digest))
        assert store.active("embedded", "node0") == new.digest
        assert store.active("embedded", "node1") == store.active("embedded") == old.digest
        assert store.canary("embedded") == trial(new.digest)

    def test_it_ends_by_going_back_or_by_going_on(self, store: Store) -> None:
        old, new = put_image(store, "old"), put_image(store, "new")
        store.activate("embedded", old.digest)
        store.begin_trial(trial(new.digest))
        assert store.rollback("embedded") == (new.digest, old.digest)
        assert store.active("embedded", "node0") == old.digest and store.canary("embedded") is None
        store.begin_trial(trial(new.digest))
        store.activate("embedded", new.digest)
        assert store.active("embedded", "node0") == store.active("embedded", "node1") == new.digest
        assert store.previous("embedded") == old.digest and store.canary("embedded") is None

    def test_one_at_a_time(self, store: Store) -> None:
        old, new = put_image(store, "old"), put_image(store, "new")
        store.activate("embedded", old.digest)
        store.begin_trial(trial(new.digest))
        with pytest.raises(StoreError, match=f"a trial of {new.digest} on node0 is under way"):
            store.begin_trial(trial(new.digest, "node1"))


class TestCollect:
    def test_it_keeps_what_is_needed(self, store: Store) -> None:
        made = [put_image(store, str(day), created=f"2026-11-{day:02}T00:00:00Z").digest for day in range(1, 9)]
        store.activate("embedded", made[0])
        store.activate("embedded", made[1])
        store.activate("embedded", made[0])
        store.begin_trial(trial(made[2]))
        removed = store.collect(keep=2, running=[made[3]])
        assert set(removed.images) == {made[4], made[5]}
        assert {each.digest for each in store.images()} == set(made) - {made[4], made[5]}
        assert removed.bytes > 0
        assert not [name for name in names(store.root) if name.startswith("partial-removed")]

    def test_a_layer_stays_while_one_image_needs_it(self, store: Store) -> None:
        shared = {"driver": b"firmware"}
        first = put_image(store, "1", created="2026-11-01T00:00:00Z", layers={**shared, "engine": b"old"})
        second = put_image(store, "2", created="2026-11-02T00:00:00Z", layers=shared)
        removed = store.collect(keep=1)
        assert removed.images == (first.digest,)
        assert removed.layers == (first.layers[1].sha256,)
        assert store.verify(second.digest) == []


def test_what_a_killed_build_left_is_swept(store: Store) -> None:
    left = store.workspace("build")
    (left / "root.squashfs").write_text("half")
    with store.lock("build", wait=False):
        store.sweep()
    assert not left.exists()
    assert store.images() == []


def test_an_unreadable_manifest_is_no_image(store: Store) -> None:
    good = put_image(store, "one")
    broken = store.folder("0123456789abcdef")
    broken.mkdir()
    (broken / MANIFEST).write_text("{")
    assert [each.digest for each in store.images()] == [good.digest]
    with pytest.raises(StoreError, match="there is no image 0123456789abcdef"):
        store.manifest("0123456789abcdef")


def keep_locked(root: str, locked: Event, let_go: Event) -> None:
    with Store(root).lock("build"):
        locked.set()
        let_go.wait(30)


def test_a_second_build_says_who_builds(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    locked, let_go = context.Event(), context.Event()
    other = context.Process(target=keep_locked, args=(str(store.root), locked, let_go))
    other.start()
    try:
        assert locked.wait(30)
        with pytest.raises(StoreError, match=f"process {other.pid} is at it already"), store.lock("build", wait=False):
            pass
    finally:
        let_go.set()
        other.join(30)
    with store.lock("build", wait=False):
        assert (store.root / ".lock-build").read_text() == str(os.getpid())


def test_a_difference_names_packages_layers_and_files(store: Store) -> None:
    old = put_image(
        store, "old", packages={"a": "1", "b": "1"}, contents={"/x": "file 0644 0:0 aa"}, layers={"driver": b"1"}
    )
    new = put_image(
        store,
        "new",
        packages={"b": "2", "c": "1"},
        contents={"/x": "file 0600 0:0 aa", "/y": "link x"},
        layers={"driver": b"2"},
    )
    found = operations.diff(store, "embedded", old.digest, new.digest)
    assert found["packages"] == {"added": {"c": "1"}, "removed": {"a": "1"}, "changed": {"b": ("1", "2")}}
    assert list(found["files"]["changed"]) == ["/x"] and list(found["files"]["added"]) == ["/y"]
    assert list(found["layers"]["changed"]) == ["driver"]
    assert found["kernel"] is None and found["python"] == {"added": {}, "removed": {}, "changed": {}}
