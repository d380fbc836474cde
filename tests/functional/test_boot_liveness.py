"""A node whose samples come is up for the boot service, whatever its connection looks like."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import hostile
from tests.boot_bench import ADDRESSES, Bench, bench


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as found:
        yield found


def test_a_node_that_sends_samples_is_up_whoever_has_its_address(service: Bench) -> None:
    """Its MAC and address are another's now, so nothing of it is connected; its samples still come."""
    asyncio.run(service.node("node0").enrol(hostile.public_key()))
    before = dict(service.keys.accepted)
    service.now += 1000.0
    service.hearts["node0"] = service.now - 5.0
    assert "not expected to boot now" in asyncio.run(service.node("node0").script())
    assert service.service.state.refusals[-1].reason == "the node is alive: it sends samples"
    assert service.announced[-1] == ("cluster/boot/duplicate", {"node": "node0", "source": ADDRESSES["node0"]})
    # One that has been silent gets its script; and should the samples come after all, that script lets nobody in.
    service.now += 60.0
    boot = asyncio.run(service.node("node0").begin())
    service.now += 60.0
    service.hearts["node0"] = service.now
    claim = json.dumps(boot.claim(hostile.public_key())).encode()
    assert asyncio.run(hostile.post(service.url, claim, ADDRESSES["node0"]))[0] == 403
    assert service.service.state.refusals[-1].reason == "the node is alive: it sends samples"
    assert service.keys.accepted == before
    # The last samples before a boot keep nobody out, nor do those of a clock that is somewhat ahead.
    service.now += 60.0
    service.hearts["node0"] = service.now - 16.0 + 20.0
    service.now += 40.0
    asyncio.run(service.node("node0").enrol(hostile.public_key()))
    assert service.keys.accepted != before
