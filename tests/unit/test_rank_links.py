"""A cut link set apart from a slow one: tables of connections in a folder, interfaces that are only answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rank_links

sys.path.insert(0, str(Path(__file__).parents[2] / "salt" / "sampler" / "files"))

import link_cuts
import workers

# As the kernel of a little-endian machine writes 10.77.1.10, 10.77.1.11 and 10.77.1.12.
HEAD, FOLLOWER, THIRD = "0A014D0A", "0B014D0A", "0C014D0A"
ADDRESS, PEER = "10.77.1.10", "10.77.1.11"
pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the tables are a little-endian machine's")


def row(local: str, remote: str, again: int = 0, state: str = "01", timer: str = "01") -> str:
    return f"  0: {local}:8E52 {remote}:1F90 {state} 00001000:00000000 {timer}:00000064 {again:08X}     0        0 77 1"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "tcp"


def lay(table: Path, *rows: str) -> str:
    table.write_text("\n".join(["  sl  local_address rem_address", *rows]) + "\n")
    return str(table)


@pytest.fixture
def carrier(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Interfaces without carrier by address, and what `ss` prints."""
    known: dict[str, Any] = {"out": None, "ss": ""}
    monkeypatch.setattr(rank_links, "without_carrier", lambda _address: known["out"])

    def run(argv: list[str], **_more: Any) -> Any:
        assert argv[0] == "ss" and argv[-1] == ADDRESS
        if isinstance(known["ss"], Exception):
            raise known["ss"]
        return subprocess.CompletedProcess(argv, 0, known["ss"], "")

    monkeypatch.setattr(subprocess, "run", run)
    return known


def printed(peer: str, since_data: int, since_acknowledgement: int) -> str:
    since = f"lastrcv:{since_data} lastack:{since_acknowledgement}"
    return f"0 4096 {ADDRESS}:36434 {peer}:8080 cubic rto:1600 backoff:3 {since} x:1\n"


def test_only_open_connections_from_the_address_to_others_count(table: Path, carrier: dict[str, Any]) -> None:
    path = lay(
        table,
        row(HEAD, FOLLOWER, 2),
        row(HEAD, HEAD, 5),
        row(HEAD, FOLLOWER, 6, state="04"),
        row(HEAD, THIRD, 7, timer="04"),  # a peer whose buffer is full is probed, and answers
        row(FOLLOWER, HEAD, 8),
        "torn",
    )
    assert rank_links.connections(ADDRESS, path) == [(PEER, 2), ("10.77.1.12", 0)]
    assert not rank_links.is_suspected(ADDRESS, True, path) and rank_links.cut(ADDRESS, path) == []
    assert rank_links.connections(ADDRESS, str(table.parent / "none")) == []


def test_a_link_without_carrier_is_cut_where_ranks_have_connections_over_it(
    table: Path, carrier: dict[str, Any]
) -> None:
    carrier["out"] = "usb4"
    path = lay(table, row(HEAD, FOLLOWER))
    assert rank_links.is_suspected(ADDRESS, False, path)
    assert rank_links.cut(ADDRESS, path) == ["the link usb4 of the ranks has no carrier"]
    path = lay(table, row(FOLLOWER, HEAD))
    assert not rank_links.is_suspected(ADDRESS, True, path) and rank_links.cut(ADDRESS, path) == []


@pytest.mark.parametrize(
    ("printed_lines", "is_cut"),
    [
        (printed(PEER, 2100, 1900), True),
        (printed(PEER, 2100, 300), False),
        (printed(PEER, 2100, 1900) + printed(PEER, 40, 9000), False),
        (printed("10.77.1.12", 40, 40) + printed(PEER, 2100, 1900), True),
        ("odd\n0 0 x\n", False),
        ("", False),
        (OSError("no such program"), False),
        (subprocess.TimeoutExpired("ss", 5), False),
    ],
    ids=["nothing comes", "acknowledged", "another carries", "another peer", "odd", "gone", "no ss", "late"],
)
def test_what_is_sent_again_and_again_is_a_cut_only_when_nothing_comes_from_the_peer(
    table: Path, carrier: dict[str, Any], printed_lines: Any, is_cut: bool
) -> None:
    """Behind a full link of 8 MiB at 10 Mbit/s a small message waits for seconds, and is sent again meanwhile."""
    carrier["ss"] = printed_lines
    path = lay(table, row(HEAD, FOLLOWER, 3), row(HEAD, FOLLOWER))
    assert rank_links.is_suspected(ADDRESS, True, path)
    assert not rank_links.is_suspected(ADDRESS, False, path), "the table is not read for nothing"
    found = rank_links.cut(ADDRESS, path)
    assert len(found) == int(is_cut) and all(f"nothing comes from {PEER}" in words for words in found)


def test_the_machines_own_loopback_has_carrier_and_an_unknown_address_has_no_interface() -> None:
    assert rank_links.without_carrier("127.0.0.1") is None
    assert rank_links.without_carrier("192.0.2.7") is None


class Cuts:
    """A node with a worker whose link may be cut."""

    def __init__(self, folder: Path) -> None:
        self.file, self.is_cut, self.count = folder / "worker.json", False, 7
        self.write({"name": "tp2-0", "link_address": ADDRESS})
        record = {"pid": 41, "keeper": 40, "keeper_start": 1, "exit_code": None}
        (folder / f"{workers.UNIT_PREFIX}tp2-0.json").write_text(json.dumps(record))
        self.cuts = link_cuts.LinkCuts(str(self.file), str(folder), self.look_at, lambda: self.count)
        self.lately: list[bool] = []

    def look_at(self, address: str, sent_again: bool) -> bool:
        assert address == ADDRESS
        self.lately.append(sent_again)
        return self.is_cut

    def write(self, content: Any) -> None:
        self.file.write_text(json.dumps(content))


@pytest.fixture
def node(tmp_path: Path) -> Cuts:
    return Cuts(tmp_path)


def test_a_cut_that_two_looks_show_is_reported_once_until_it_is_gone(node: Cuts) -> None:
    news = [{"worker": "tp2-0", "pid": 41, "kind": "cut"}]
    assert node.cuts.look(0.0) == []
    node.is_cut = True
    assert node.cuts.look(0.5) == [], "not looked at yet"
    assert node.cuts.look(1.0) == []
    assert node.cuts.look(2.0) == news
    assert node.cuts.look(3.0) == []
    node.is_cut = False
    assert node.cuts.look(4.0) == []
    node.is_cut = True
    assert [node.cuts.look(5.0), node.cuts.look(6.0)] == [[], news]


def test_what_was_sent_again_counts_for_some_seconds(node: Cuts) -> None:
    for moment in (0.0, 1.0):
        node.cuts.look(moment)
    node.count += 1
    for moment in (2.0, 3.0, 6.5, 7.5):
        node.cuts.look(moment)
    assert node.lately == [False, False, True, True, True, False]


def test_the_kernels_count_of_what_was_sent_again_is_read(tmp_path: Path) -> None:
    counters = tmp_path / "snmp"
    counters.write_text("Ip: Forwarding\nIp: 1\nTcp: OutSegs RetransSegs InErrs\nTcp: 500 42 0\nUdp: X\nUdp: 1\n")
    assert rank_links.sent_again(str(counters)) == 42
    counters.write_text("Tcp: OutSegs\nTcp: 5\n")
    assert rank_links.sent_again(str(counters)) == rank_links.sent_again(str(tmp_path / "none")) == 0
    assert rank_links.sent_again() >= 0


@pytest.mark.parametrize(
    "content", [7, [], {}, {"name": "x"}, {"name": "x", "link_address": None}, {"name": "x", "link_address": "y"}]
)
def test_a_node_without_a_worker_on_a_link_has_no_cut(node: Cuts, content: Any) -> None:
    node.is_cut = True
    node.write(content)
    assert node.cuts.look(0.0) == node.cuts.look(1.0) == node.cuts.look(2.0) == []
    node.file.unlink()
    assert node.cuts.look(3.0) == node.cuts.look(4.0) == []
