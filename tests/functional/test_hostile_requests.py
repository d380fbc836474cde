"""Raw requests of a stranger against the boot service: nothing comes back that could help, and others are served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import hostile, hostile_requests
from tests.boot_bench import ADDRESSES, Bench, bench

ATTEMPTS = 30
OWN = hostile.public_key()
KINDS = tuple(
    hostile_requests.Stranger(hostile.Boot("0" * 32, "node0", "", "0" * 16, "0" * 64), {"pub": ""}, OWN).kinds()
)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as found:
        yield found


@pytest.mark.parametrize("kind", KINDS)
def test_it_gets_nothing_and_keeps_nobody_out(service: Bench, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(service.node("node1").enrol(hostile.public_key()))
    waiting = asyncio.run(service.node("node0").begin())
    captured = waiting.claim(hostile.public_key())
    make = hostile_requests.Stranger(waiting, captured, OWN).kinds()[kind]
    before = dict(service.keys.accepted)
    requests = (make(number) for number in range(ATTEMPTS))
    answers = asyncio.run(hostile_requests.send("127.0.0.1", service.port, requests))
    assert sum(answers.values()) >= ATTEMPTS and not {200, 204, 500} & set(answers), answers
    assert service.keys.accepted == before
    # Nor does it fill the log: what is refused is named, within a budget of lines, and nothing has a traceback.
    assert len(caplog.records) <= ATTEMPTS + 20 and "Traceback" not in caplog.text
    # The claim that was captured is the node's own, and is good for it still.
    assert asyncio.run(hostile.post(service.url, json.dumps(captured).encode(), ADDRESSES["node0"]))[0] == 200


def test_there_are_many_kinds() -> None:
    boot = hostile.Boot("0" * 32, "node0", "", "0" * 16, "0" * 64)
    arsenal = hostile.Arsenal(boot, {}, boot, [boot], "node1", OWN)
    assert len(KINDS) >= 9 and len(arsenal.kinds()) >= 14
