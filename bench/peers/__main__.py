"""Ask every program about the recorded scenarios, keep what they say, make the page of it.

    python -m bench.peers                    # all of them: environments, replay, questions; some minutes
    python -m bench.peers --only ours        # our column alone, beside what is on record of the others
    python -m bench.peers --only InferPilot --environments /var/tmp/peers
    python -m bench.peers --page             # nobody is asked; the page from the record

The answers go into tests/data/peers/answers.jsonl, the tables into doc/reference/verdict-peers.md. `--dry-run` leaves
both as they are and prints the table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.peers.answers import Answer
from bench.peers.cases import CASES, DATA
from bench.peers.page import Row, filled, tables
from bench.peers.programs import Program, ProgramError
from bench.peers.replay import Recording, served
from bench.peers.tools import OUR_WAYS, OURS, PEERS, Peer, Question, ask_ours

RECORD = DATA / "peers" / "answers.jsonl"
PAGE = DATA.parents[1] / "doc" / "reference" / "verdict-peers.md"
TOOLS = (OURS, *PEERS)


def progress(text: str) -> None:
    """Tell on standard error what is being done."""
    print(text, file=sys.stderr, flush=True)


def row(program: str, version: str, way: str, scenario: str, answer: Answer) -> Row:
    """Return one line of the record."""
    date = time.strftime("%Y-%m-%d")
    asked: dict[str, Any] = {
        "program": program,
        "version": version,
        "date": date,
        "way": way,
        "scenario": scenario,
    }
    return {**asked, **answer.to_json()}


def our_rows() -> Iterator[Row]:
    """Ask our own command about every scenario, without ceilings and with."""
    alone, with_ceilings = OUR_WAYS
    for case in CASES:
        progress(f"{OURS}: {case.name}")
        answer = ask_ours(case)
        yield row(OURS, "this tree", alone, case.name, answer)
        if case.ceilings:
            answer = ask_ours(case, DATA / case.ceilings)
        yield row(OURS, "this tree", with_ceilings, case.name, answer)


def peer_rows(name: str, peer: Peer, environments: Path, recordings: dict[str, Recording]) -> Iterator[Row]:
    """Install a program, ask it about every scenario in every way it knows; what fails is an answer too."""
    program = Program(environments / peer.package, peer.package, peer.version)
    progress(f"{name}: {program.installation}")
    try:
        program.install()
    except ProgramError as error:
        refused = Answer(unread=str(error))
        yield from (row(name, peer.version, way, case.name, refused) for way in peer.ways for case in CASES)
        return
    with served(recordings) as address:
        for way, ask in peer.ways.items():
            progress(f"{name}: {way}")
            for case in CASES:
                with tempfile.TemporaryDirectory(prefix="peers-") as folder:
                    question = Question(case, recordings[case.name], address, Path(folder))
                    try:
                        answer = ask(program, question)
                    except ProgramError as error:
                        answer = Answer(unread=str(error))
                yield row(name, peer.version, way, case.name, answer)


def asked(tools: list[str], environments: Path | None, record: list[Row]) -> list[Row]:
    """Return the record with the answers of some programs made new."""
    rows = [line for line in record if line["program"] not in tools]
    if OURS in tools:
        rows += our_rows()
    peers = [tool for tool in tools if tool != OURS]
    if peers:
        recordings = {case.name: Recording(case.path) for case in CASES}
        with tempfile.TemporaryDirectory(prefix="peers-environments-") as scratch:
            for tool in peers:
                rows += peer_rows(tool, PEERS[tool], environments or Path(scratch), recordings)
    return sorted(rows, key=lambda line: TOOLS.index(line["program"]))


def read_record(path: Path) -> list[Row]:
    """Read the record's lines; none when there is no record yet."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def main() -> None:
    """Ask, keep, show."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=TOOLS, help="ask this program alone (repeatable)")
    parser.add_argument("--environments", type=Path, help="keep the programs' environments here and use them again")
    parser.add_argument("--page", action="store_true", help="ask nobody: make the page from the record")
    parser.add_argument("--dry-run", action="store_true", help="write neither record nor page")
    parser.add_argument("--json", action="store_true", help="print the record, a line an answer, not the table")
    arguments = parser.parse_args()
    record = read_record(RECORD)
    if not arguments.page:
        environments = arguments.environments.resolve() if arguments.environments else None
        record = asked(arguments.only or list(TOOLS), environments, record)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in record)
    found = tables(record)
    if not arguments.dry_run:
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(text, encoding="utf-8")
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    print(text if arguments.json else found["score"])


if __name__ == "__main__":
    main()
