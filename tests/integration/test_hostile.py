"""A real master with the boot engine, a real accepted minion, and thousands of attempts to become a node.

Prints the table of doc/reference/boot.md: `pytest -s tests/integration/test_hostile.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import salt._logging
import salt.cache
import salt.client
import salt.config
import yaml
from saltfactories.utils import random_string

from control import node_keys
from netboot.boot import storage
from netboot.boot.state import Boot as RecordedBoot
from netboot.boot.state import NodeState, State
from tests import boot_profile, fake_image, hostile, hostile_requests, sealing
from tests.waiting import free_port, listens, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

REPOSITORY = Path(__file__).parents[2]
ATTEMPTS = 520
# Of those that each take a connection of their own.
REQUESTS = 60
EVENTS = 150
MACS = {"node0": "02:77:00:00:00:10", "node1": "02:77:00:00:00:11", "node2": "02:77:00:00:00:12"}
ADDRESSES = {"node0": "127.0.0.10", "node1": "127.0.0.11", "node2": "127.0.0.12"}


@pytest.fixture(scope="session")
def salt_factories_config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    # Salt's early handler would write to a stream that pytest has closed by then.
    salt._logging.shutdown_temp_handler()
    return {"root_dir": str(tmp_path_factory.mktemp("salt")), "start_timeout": 90, "system_service": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an active image and a record that holds boots whose time is over."""
    folder = tmp_path_factory.mktemp("boot")
    image = fake_image.publish(folder / "images", "hostile").digest
    began = time.time() - 3600
    late = tuple(
        RecordedBoot(
            f"{number:032x}", began, image, MACS["node2"], "node2", nonce=f"{number:064x}", expires=began + 300
        )
        for number in range(4)
    )
    storage.write(folder / "boot", State(nodes={"node2": NodeState(boots=late)}))
    return folder


@pytest.fixture(scope="module")
def profile(folder: Path) -> Path:
    links = {name: {"interface": "eth0", "mac": MACS[name], "address": ADDRESSES[name]} for name in MACS}
    control = {"address": "127.0.0.1", "interface": "lo"}
    profile = boot_profile.described("hostile", control, "127.0.0.0/24", links, {"port": free_port()})
    return boot_profile.write(folder / "hostile.yaml", profile)


@pytest.fixture(scope="module")
def url(profile: Path) -> str:
    return f"http://127.0.0.1:{yaml.safe_load(profile.read_text())['boot']['port']}"


@pytest.fixture(scope="module")
def master(salt_factories: Any, folder: Path, profile: Path, url: str) -> Iterator[Any]:
    started = salt_factories.salt_master_daemon(
        random_string("master-"),
        defaults={
            "interface": "127.0.0.1",
            "user": "root" if os.geteuid() == 0 else None,
            "worker_threads": 2,
            "auto_accept": False,
            "module_dirs": [str(REPOSITORY)],
            "cluster_profile": str(profile),
            "cluster_directory": str(folder),
            "engines": [{"boot": {"images": str(folder / "images"), "dhcp_log": str(folder / "dnsmasq.log")}}],
        },
    )
    with started.started():
        wait_for(lambda: listens(int(url.rpartition(":")[2])), 60, "the boot service listens", 0.2)
        yield started


@pytest.fixture(scope="module")
def minion(master: Any, url: str) -> Iterator[tuple[Any, hostile.Boot]]:
    """A node of the cluster that has been taken over, accepted and up, and the boot it enrolled with."""
    started = master.salt_minion_daemon(
        "node1",
        defaults={
            "user": "root" if os.geteuid() == 0 else None,
            "source_address": ADDRESSES["node1"],
            "enable_fqdns_grains": False,
            "enable_gpu_grains": False,
            "acceptance_wait_time": 1,
            "random_reauth_delay": 1,
        },
    )
    private, public = hostile.key_pair()
    pki = Path(started.config["pki_dir"])
    pki.mkdir(parents=True, exist_ok=True)
    (pki / "minion.pem").write_text(private)
    (pki / "minion.pub").write_text(public)
    boot = asyncio.run(hostile.Node(url, ADDRESSES["node1"], MACS["node1"]).enrol(public))
    with started.started():
        yield started, boot


class Store:
    """The master's keys, read with Salt's own driver."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._cache = salt.cache.Cache(config, driver=config["keys.cache_driver"])

    def accepted(self) -> dict[str, str]:
        found = {name: self._cache.fetch("keys", name) for name in self._cache.list("keys")}
        return {name: key["pub"].strip() for name, key in found.items() if key and key["state"] == "accepted"}


def fire(config: dict[str, Any], events: Iterator[tuple[str, dict[str, Any]]]) -> int:
    """Send events as the accepted minion, over its own authenticated channel."""
    caller = salt.client.Caller(mopts={**config, "file_client": "remote"})
    count = 0
    for tag, data in events:
        caller.cmd("event.fire_master", data, tag)
        count += 1
    return count


def forged(pub: str, folder: Path) -> dict[str, Callable[[int], tuple[str, dict[str, Any]]]]:
    """Return kind -> what makes the event of an attempt."""
    own = node_keys.key_of({"cluster_directory": folder}, "node1")
    accepted = {"result": True, "act": "accept", "id": "node0", "pub": pub}
    return {
        "forged salt/auth, from an accepted minion": lambda n: ("salt/auth", {**accepted, "id": f"node{n % 3}"}),
        "forged salt/key, from an accepted minion": lambda n: (
            "salt/key",
            {**accepted, "act": ("delete", "accept")[n % 2]},
        ),
        "forged minion start, from an accepted minion": lambda n: (
            f"salt/minion/node{n % 3}/start",
            {"id": f"node{n % 3}"},
        ),
        "forged node lost and boot events, from an accepted minion": lambda n: (
            ("cluster/node/lost", "cluster/boot/enrolled", "cluster/boot/arm")[n % 3],
            {"node": "node1", "id": "node1", "pub": pub},
        ),
        "forged answers to jobs in another's name, from an accepted minion": lambda n: (
            f"salt/job/2026010100000000{n:04d}/ret/node0",
            {"id": "node0", "jid": f"2026010100000000{n:04d}", "fun": "test.ping", "return": True, "retcode": 0},
        ),
        "answers in another's name under its own seal, from an accepted minion": lambda n: (
            f"salt/job/2026010100000001{n:04d}/ret/node0",
            {
                **{"id": "node0", "jid": f"2026010100000001{n:04d}", "fun": "test.ping", "retcode": 0},
                "return": sealing.answer(
                    own,
                    ("node0", "node1")[n % 2],
                    **{"job": f"2026010100000001{n:04d}", "nonce": "0" * 32, "function": "test.ping", "content": True},
                ),
            },
        ),
        "batches in another's name under its own seal, from an accepted minion": lambda n: (
            "cluster/telemetry/batch/node0",
            sealing.event(folder, "node1", [{"node": "node0", "boot": "b", "sequence": n + 1}], "node0"),
        ),
        "forged windows, ends of workers and stalls, from an accepted minion": lambda n: (
            ("cluster/telemetry/window", "cluster/worker/exited", "cluster/engine/stalled")[n % 3],
            {"node": "node0", "workers": ["a"], "seconds": 9, "sealed": "{}", "seal": "0" * 64},
        ),
        "forged changes of image and profile, from an accepted minion": lambda n: (
            ("cluster/image/changed", "cluster/profile/changed", "cluster/image/trial")[n % 3],
            {"profile": "hostile", "action": "promote"},
        ),
        "forged batches of another's samples, from an accepted minion": lambda n: (
            "cluster/telemetry/batch/node0",
            {
                "batches": [
                    {"node": "node0", "boot": "b", "sequence": n + 1, "t0": 1.0, "t1": 2.0, "samples": [{"t": 1.0}]}
                ]
            },
        ),
    }


def test_none_gets_in_and_nobody_is_locked_out(
    master: Any,
    minion: tuple[Any, hostile.Boot],
    folder: Path,
    url: str,
    record_property: Callable[[str, object], None],
) -> None:
    keys = Store(master.config)
    nodes = {name: hostile.Node(url, ADDRESSES[name], MACS[name]) for name in MACS}
    rows: list[tuple[str, int, str]] = []
    pubs = [hostile.public_key() for _ in range(3)]
    own = hostile.public_key()
    turn = 0

    async def legitimate() -> None:
        """Node0 boots again, with a new key: after each kind of attack it must get in at once."""
        nonlocal turn
        turn += 1
        pub = pubs[turn % len(pubs)]
        await nodes["node0"].enrol(pub)
        assert keys.accepted()["node0"] == pub

    def unmoved(before: dict[str, str], kind: str) -> None:
        after = keys.accepted()
        assert after == before, f"{kind}: the keys have changed"
        assert own not in after.values()

    async def run() -> None:
        captured = (await nodes["node0"].enrol(pubs[0])).claim(pubs[0])
        waiting = await nodes["node2"].begin()
        late = [
            hostile.Boot(f"{number:032x}", "node2", MACS["node2"], waiting.image, f"{number:064x}")
            for number in range(4)
        ]
        arsenal = hostile.Arsenal(minion[1], captured, waiting, late, "node1", own)
        for kind, make in arsenal.kinds().items():
            before = keys.accepted()
            answers = await hostile.attack(url, (make(number) for number in range(ATTEMPTS)))
            unmoved(before, kind)
            if not kind.startswith("replay"):
                assert not {200, 500} & set(answers), f"{kind}: {answers}"
            rows.append((kind, sum(answers.values()), _answers(answers)))
            await legitimate()
            if kind.startswith("replay"):
                # Node0 has booted again since: what was captured is worth nothing now.
                before = keys.accepted()
                answers = await hostile.attack(url, (make(number) for number in range(ATTEMPTS)))
                unmoved(before, kind)
                assert set(answers) == {403}
                rows.append(("replay after the node's next boot", sum(answers.values()), _answers(answers)))
        stranger = hostile_requests.Stranger(waiting, captured, own)
        host, port = url.removeprefix("http://").split(":")
        for kind, make in stranger.kinds().items():
            before = keys.accepted()
            requests = (make(number) for number in range(REQUESTS))
            answers = await hostile_requests.send(host, int(port), requests)
            unmoved(before, kind)
            assert not {200, 204, 500} & set(answers), f"{kind}: {answers}"
            rows.append((kind, sum(answers.values()), _answers(answers)))
            await legitimate()
        await asking(nodes, rows, keys)
        await legitimate()
        await flood(rows)
        # The boot that waited through all of it is still good.
        status, text = await hostile.post(url, json.dumps(waiting.claim(pubs[1])).encode(), ADDRESSES["node2"])
        assert status == 200, text
        assert keys.accepted()["node2"] == pubs[1]

    async def asking(nodes: dict[str, hostile.Node], rows: list[tuple[str, int, str]], keys: Store) -> None:
        before = keys.accepted()
        tries: tuple[tuple[str, str, Callable[[int], str]], ...] = (
            ("script for a node's MAC, from another address", hostile.ATTACKER, lambda _: MACS["node0"]),
            (
                "script for a MAC that is no node's",
                hostile.ATTACKER,
                lambda n: f"02-66-00-00-{n >> 8:02x}-{n & 255:02x}",
            ),
            ("script for a node that is alive", ADDRESSES["node1"], lambda _: MACS["node1"]),
            (
                "script with a malformed MAC",
                hostile.ATTACKER,
                lambda n: ("", "%s%n", "../..", "02:77", "x" * 900)[n % 5],
            ),
        )
        for kind, source, mac in tries:
            assert await hostile.scripts(nodes["node0"], ATTEMPTS, source, mac) == 0, kind
            unmoved(before, kind)
            rows.append((kind, ATTEMPTS, "no nonce given"))

    async def flood(rows: list[tuple[str, int, str]]) -> None:
        """Half requests and whole ones at the same time, and the legitimate node in between."""
        host, port = url.removeprefix("http://").split(":")
        writers = await hostile.half_requests(host, int(port), 200)
        try:
            async with asyncio.TaskGroup() as tasks:
                stream = tasks.create_task(hostile.attack(url, (b"{}" for _ in range(2 * ATTEMPTS))))
                while not stream.done():
                    await legitimate()
        finally:
            for writer in writers:
                writer.close()
        answers = stream.result()
        rows.append(("flood, with 200 requests that never end", sum(answers.values()), _answers(answers)))

    asyncio.run(run())
    before = keys.accepted()
    for kind, make in forged(own, folder).items():
        sent = fire(minion[0].config, (make(number) for number in range(EVENTS)))
        unmoved(before, kind)
        rows.append((kind, sent, "no key touched"))
    assert not node_keys.is_proven({"cluster_directory": folder}, "node0")
    asyncio.run(legitimate())

    assert set(keys.accepted()) == set(MACS)
    record = storage.read(folder / "boot")
    assert record is not None
    assert any(refusal.reason == "the node is alive" and refusal.node == "node1" for refusal in record.refusals)
    attempts = sum(number for _, number, _ in rows)
    assert attempts >= 10_000 and len(rows) >= 30
    record_property("attempts", attempts)
    print("\n| Kind | Attempts | Got in | Answers |\n|---|---|---|---|")
    for kind, number, answers in rows:
        print(f"| {kind} | {number} | 0 | {answers} |")
    print(f"| **all** | **{attempts}** | **0** | {turn} boots of a legitimate node in between, none refused |")


def _answers(answers: dict[int, int]) -> str:
    names = {0: "connection closed", 200: "200, nothing changed"}
    return ", ".join(f"{names.get(status, str(status))}: {number}" for status, number in sorted(answers.items()))
