"""Outcome of an image's trial, for everything that can be known of the node's boot."""

from __future__ import annotations

from pathlib import Path

import pytest

from netboot.image.canary import BootRecord, Canary, decide, settle
from netboot.image.store import Store
from tests.unit.image_store_builder import put_image

NEW, OLD = "1111111111111111", "2222222222222222"
TRIAL = Canary("arc-a770", "node0", NEW, started=1000.0, deadline=1600.0)


@pytest.mark.parametrize(
    ("record", "now", "action", "words"),
    [
        (None, 1000.0, "wait", "600 s left"),
        (None, 1599.0, "wait", "1 s left"),
        (None, 1600.0, "rollback", "within 600 s: it did not boot it"),
        # Still up with the old image, from before the trial.
        (BootRecord(OLD, 10.0, 20.0), 1100.0, "wait", "500 s left"),
        (BootRecord(OLD, 10.0, 20.0), 1601.0, "rollback", "it did not boot it"),
        # The same image from an earlier trial proves nothing about this one.
        (BootRecord(NEW, 10.0, 20.0), 1100.0, "wait", "500 s left"),
        # It booted in the trial, with the other image: somebody else decided so.
        (BootRecord(OLD, 1010.0, 1050.0), 1100.0, "wait", "500 s left"),
        (BootRecord(NEW, 1010.0), 1100.0, "wait", "500 s left"),
        (BootRecord(NEW, 1010.0), 1600.0, "rollback", "it booted and did not enrol"),
        (BootRecord(NEW, 1010.0, 1055.0), 1100.0, "promote", "came back with 1111111111111111 after 55 s"),
        # Seen late, but it came in time.
        (BootRecord(NEW, 1010.0, 1055.0), 9999.0, "promote", "came back"),
        (BootRecord(NEW, 1010.0, 1700.0), 1701.0, "rollback", "it booted and did not enrol"),
        (BootRecord(NEW, 1010.0, None, "no init"), 1100.0, "rollback", "cannot boot 1111111111111111: no init"),
        (BootRecord(OLD, 1010.0, None, "no init"), 1100.0, "wait", "500 s left"),
    ],
)
def test_decision(record: BootRecord | None, now: float, action: str, words: str) -> None:
    decision = decide(TRIAL, record, now)
    assert decision.action == action
    assert words in decision.reason and decision.reason.startswith("node0")


@pytest.mark.parametrize(
    ("record", "now", "action", "active"),
    [
        (None, 1100.0, "wait", "old"),
        (None, 1700.0, "rollback", "old"),
        ("enrolled", 1100.0, "promote", "new"),
    ],
)
def test_a_decision_is_carried_out(tmp_path: Path, record: str | None, now: float, action: str, active: str) -> None:
    store = Store(tmp_path)
    digests = {name: put_image(store, name).digest for name in ("old", "new")}
    store.activate("arc-a770", digests["old"])
    assert settle(store, "arc-a770", lambda node: None, now) is None
    store.begin_trial(Canary("arc-a770", "node0", digests["new"], started=1000.0, deadline=1600.0))
    asked: list[str] = []

    def newest_boot(node: str) -> BootRecord | None:
        asked.append(node)
        return BootRecord(digests["new"], 1010.0, 1050.0) if record else None

    decision = settle(store, "arc-a770", newest_boot, now)
    assert decision is not None and decision.action == action and asked == ["node0"]
    assert store.active("arc-a770", "node1") == digests[active]
    assert (store.canary("arc-a770") is None) == (action != "wait")
    assert store.active("arc-a770", "node0") == digests["new" if action == "wait" else active]
