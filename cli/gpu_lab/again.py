"""Judge the runs of a folder of records again, with the rules of today."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bottleneck.diagnosis.verdict import analyse
from bottleneck.runs.run_folder import load_run
from cli.gpu_lab.cases import all_cases
from cli.gpu_lab.trials import KEPT, RECORD
from cli.verify import archive
from cli.verify.record import Record


def judged_again(folder: Path) -> list[Mapping[str, Any]]:
    """Return the lines of a record, with today's verdicts on the raw runs, and today's list of what is right.

    A run that is in no archive keeps its verdict. Lines are in the order in which they were recorded.

    Raises
    ------
    RunError
        Naming the run that cannot be read.
    """
    verdicts: dict[str, dict[str, Any]] = {}
    with TemporaryDirectory(prefix="gpu-lab-again-") as scratch:
        for path in sorted((folder / "runs").glob("*.tar.xz")):
            for run in archive.unpack(path, Path(scratch)):
                found = analyse(load_run(run)).to_json()
                verdicts[run.name] = {key: found[key] for key in KEPT}
    listed = {case.name: list(case.expected) for case in all_cases().cases}
    return [
        {
            **line,
            "verdict": verdicts.get(str(line.get("run")), line.get("verdict")),
            "expected": listed.get(str(line.get("of")), line.get("expected")),
        }
        for line in Record(folder / RECORD).lines().values()
    ]
