"""Write the tables and pictures of doc/reference/verdict-accuracy.md from the record of `cluster verify-verdicts`.

    python bench/verdict_tables.py --again --write

`--again` judges every recorded run by the rules as they are now; without it the answers are those of the last time.
Without `--write` the tables go to stdout.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bottleneck.accuracy.figures import figures  # noqa: E402 - the path comes first
from cli.verify import judging, live, pictures, tables, upgrades  # noqa: E402
from cli.verify.record import Record  # noqa: E402

RECORD = ROOT / "tests" / "data" / "verdicts"
PAGE = ROOT / "doc" / "reference" / "verdict-accuracy.md"
NOTHING = "Nothing is recorded yet.\n"


def made(record: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the page's tables by the name of their place in it, and its pictures by the name of their file."""
    lines: dict[str, dict[str, object]] = {}
    for path in sorted(record.glob("upgrades*.jsonl")):
        lines.update(Record(path).lines())
    found = {"upgrades": upgrades.markdown(upgrades.summary(lines)) if lines else NOTHING}
    trials, answers = judging.trials(record), judging.answers(record)
    whole = judging.judged(trials, answers)
    if not whole:
        names = ("record", "score", "detection", "confusion", "reliability", "repeats", "live", "wrong")
        return {**dict.fromkeys(names, NOTHING), **found}, {}
    score = figures(whole)
    found |= {
        "record": tables.recorded(trials, [each.seconds for each in answers.values()]),
        "score": tables.score(score),
        "detection": tables.detection(score) + "\n![How often each fault is named](verdict-detection.svg)\n",
        "confusion": tables.confusion(score),
        "reliability": tables.reliability(score.reliability, score.calibration_error)
        + "\n![How often answers are right, by their confidence](verdict-reliability.svg)\n",
        "repeats": tables.repeats(score.repeats),
        "live": live.table(trials, answers, windows) if (windows := live.read(record)) else NOTHING,
        "wrong": tables.wrong(score.wrong),
    }
    drawn = {
        "verdict-detection.svg": pictures.detection(score),
        "verdict-reliability.svg": pictures.reliability(score.reliability, score.calibration_error),
    }
    return found, drawn


def filled(page: str, found: dict[str, str]) -> str:
    """Return the page with every table in its place, between `<!-- NAME -->` and `<!-- end -->`."""
    for name, text in found.items():
        places = re.findall(rf"<!-- {name} -->\n.*?<!-- end -->", page, flags=re.DOTALL)
        if len(places) != 1:
            raise SystemExit(f"{PAGE}: expected one place <!-- {name} --> ... <!-- end -->, found {len(places)}")
        page = page.replace(places[0], f"<!-- {name} -->\n\n{text}\n<!-- end -->")
    return page


def main() -> None:
    """Judge the record where that is asked for, make the tables, write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", nargs="?", type=Path, default=RECORD, help="folder of the record")
    parser.add_argument("--again", action="store_true", help="judge every run first")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    if arguments.again:
        runs = [trial.run for trial in judging.trials(arguments.record)]
        judging.write_answers(
            arguments.record, {each.run: each for each in judging.judge_again(arguments.record, runs)}
        )
        live.write(
            arguments.record, {each.run: each for each in judging.of_each(arguments.record, runs, live.replayed)}
        )
    found, drawn = made(arguments.record)
    if arguments.write:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
        for name, text in drawn.items():
            (PAGE.parent / name).write_text(text, encoding="utf-8")
    else:
        print("\n".join(found.values()))


if __name__ == "__main__":
    main()
