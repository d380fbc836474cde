"""Keep what each step of the way left: its result, or what stopped it, compressed, as soon as it is over."""

from __future__ import annotations

import json
import lzma
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bottleneck import atomic_files
from cli.verify import archive

ENDING = ".json.xz"


@dataclass
class Step:
    """One step while it lasts; what it puts into `result` is kept."""

    result: dict[str, Any] = field(default_factory=dict)


class Steps:
    """Writes a file for each step into a folder, and how long each took into `steps.json`.

    Steps of an earlier call stay: their files have lower numbers.
    """

    def __init__(self, folder: Path, keep_logs: Callable[[Path], None]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._keep_logs = folder, keep_logs
        self.seconds: dict[str, float] = {}
        numbers = [path.name.partition("-")[0] for path in folder.glob(f"*{ENDING}")]
        self._first = max((int(number) for number in numbers if number.isdecimal()), default=0)

    def is_done(self, name: str) -> bool:
        """Tell whether an earlier call, or this one, did a step to its end."""
        return any(
            json.loads(lzma.decompress(path.read_bytes()))["error"] == ""
            for path in self.folder.glob(f"*-{name}{ENDING}")
            if path.name.partition("-")[2] == f"{name}{ENDING}"
        )

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Keep what the block does under a name."""
        number, began, current = self._first + len(self.seconds) + 1, time.monotonic(), Step()
        error = ""
        try:
            yield current
        except BaseException as stopped:
            error = f"{type(stopped).__name__}: {stopped}"
            raise
        finally:
            self.seconds[name] = round(time.monotonic() - began, 1)
            document = {"step": name, "seconds": self.seconds[name], "error": error, **current.result}
            text = json.dumps(document, indent=1, default=str) + "\n"
            (self.folder / f"{number:02d}-{name}{ENDING}").write_bytes(lzma.compress(text.encode(), preset=6))
            atomic_files.replace_json(self.folder / "steps.json", {"schema": 1, "seconds": self.seconds})
            self._keep_logs(self.folder / "logs")

    def keep_run(self, run: Path) -> None:
        """Keep a recorded run."""
        archive.pack([run], self.folder / "runs" / f"{run.name}.tar.xz")
