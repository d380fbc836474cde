"""Write the tables of doc/reference/verdict-accuracy.md from a record of `cluster verify-verdicts`.

    cluster verify-verdicts --seed 3 && cluster verify-verdicts --seed 2 --upgrades
    python bench/verdict_tables.py verify --write

Without `--write` the tables go to stdout. The record that the page was made from is tests/data/verdicts.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bottleneck.diagnosis.scoring import Outcome, markdown, score  # noqa: E402 - the path comes first
from cli.verify import upgrades  # noqa: E402
from cli.verify.cases import cases  # noqa: E402
from cli.verify.record import Record  # noqa: E402
from cli.verify.tables import confusion, every_case  # noqa: E402

RECORD = ROOT / "tests" / "data" / "verdicts"
# Of the record that the page is made from.
SEED, UPGRADES_SEED = 3, 2
PAGE = ROOT / "doc" / "reference" / "verdict-accuracy.md"


def tables(record: Path, seed: int = SEED, upgrades_seed: int = UPGRADES_SEED) -> dict[str, str]:
    """Return the page's tables by the name of their place in it."""
    lines = Record(record / f"verdicts-seed{seed}.jsonl").lines()
    outcomes = [Outcome.from_json(lines[case.name]) for case in cases(seed) if case.name in lines]
    figures = score(outcomes)
    made = upgrades.summary(Record(record / f"upgrades-seed{upgrades_seed}.jsonl").lines())
    return {
        "score": markdown(figures),
        "confusion": confusion(figures),
        "cases": every_case(outcomes),
        "upgrades": upgrades.markdown(made),
    }


def filled(page: str, found: dict[str, str]) -> str:
    """Return the page with every table in its place, between `<!-- NAME -->` and `<!-- end -->`."""
    for name, text in found.items():
        places = re.findall(rf"<!-- {name} -->\n.*?<!-- end -->", page, flags=re.DOTALL)
        if len(places) != 1:
            raise SystemExit(f"{PAGE}: expected one place <!-- {name} --> ... <!-- end -->, found {len(places)}")
        page = page.replace(places[0], f"<!-- {name} -->\n\n{text}\n<!-- end -->")
    return page


def main() -> None:
    """Read the record, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", nargs="?", type=Path, default=RECORD, help="folder of the record")
    parser.add_argument("--seed", type=int, default=SEED, help="of the record of verdicts")
    parser.add_argument("--upgrades-seed", type=int, default=UPGRADES_SEED, help="of the record of upgrades")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    found = tables(arguments.record, arguments.seed, arguments.upgrades_seed)
    if arguments.write:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    else:
        print("\n".join(found.values()))


if __name__ == "__main__":
    main()
