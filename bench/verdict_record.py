"""Put a record of `cluster verify-verdicts` into tests/data/verdicts, as small as its verdicts allow.

    python bench/verdict_record.py verify

What no verdict reads is left out of each run, and numbers lose the digits that no verdict hangs on. Every run is
judged before and after: a run whose answer changes is kept as it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cli.verify import archive, judging  # noqa: E402 - the path comes first
from cli.verify.record import Record  # noqa: E402

RECORD = ROOT / "tests" / "data" / "verdicts"
# What the search of strengths noted for itself.
LEFT_OUT = ("costs", "again", "lab", "problems", "schema")


def packed(asked: tuple[Path, Path, frozenset[str]]) -> tuple[str, int, int]:
    """Trim the runs of one archive (or folder of runs) and pack them; return its name, its runs, those kept whole."""
    place, target, wanted = asked
    with TemporaryDirectory() as folder:
        source = sorted(place.iterdir()) if place.is_dir() else archive.unpack(place, Path(folder, "whole"), wanted)
        runs, whole = [], 0
        for run in source:
            if run.name not in wanted:
                continue
            slim = archive.trimmed(run, Path(folder, "slim") / run.name)
            if not judging.alike(judging.answered(slim).answer, judging.answered(run).answer):
                shutil.rmtree(slim)
                shutil.copytree(run, slim)
                whole += 1
            runs.append(slim)
        name = place.name.removesuffix(".tar.xz").rpartition("-")[0] if place.is_file() else place.name
        if runs:
            archive.pack(runs, target / f"{name}.tar.xz")
        return name, len(runs), whole


def main() -> None:
    """Trim, pack, and write the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="folder of the record as it was made")
    parser.add_argument("--target", type=Path, default=RECORD)
    arguments = parser.parse_args()
    lines: dict[str, dict[str, object]] = {}
    for path in sorted(arguments.record.glob("runs*.jsonl")):
        lines.update(Record(path).lines())
    kept = {case: line for case, line in sorted(lines.items()) if "run" in line and not line.get("error")}
    wanted = frozenset(str(line["run"]) for line in kept.values())
    places = [*sorted((arguments.record / "runs").glob("*.tar.xz")), *sorted(arguments.record.glob("raw*"))]
    target = arguments.target / "runs"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    total = unchanged = 0
    with get_context("spawn").Pool() as pool:
        for name, runs, whole in pool.imap_unordered(packed, [(place, target, wanted) for place in places]):
            total, unchanged = total + runs, unchanged + whole
            print(f"{name}: {runs} runs, {whole} of them kept whole", flush=True)
    text = "".join(
        json.dumps({key: value for key, value in line.items() if key not in LEFT_OUT}) + "\n" for line in kept.values()
    )
    (arguments.target / "runs.jsonl").write_text(text, encoding="utf-8")
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{total} of {len(kept)} runs, {unchanged} kept whole, {size / 1e6:.1f} MB")
    if total != len(kept):
        raise SystemExit("some runs of the record are in no archive")


if __name__ == "__main__":
    main()
