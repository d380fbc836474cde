"""Serve a recorded scenario's metrics as if its server ran now: `python -m tests.metrics_replay SCENARIO SECONDS`.

The scenario passes in SECONDS, however long it was; its address is printed first. What no scenario holds can be asked
for by path: `/login` asks for a login, `/other` has another server's metrics.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

OTHER = 'sglang:num_running_reqs{model_name="m"} 3\nsglang:token_usage 0.5\n'


def samples(lines: Iterable[str]) -> dict[str, float]:
    """Return {series: value} of metric lines."""
    parts = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return {series: float(value) for series, _, value in parts}


class Recording:
    """A scenario as a function of how much of it has passed."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._before = samples(document["metrics_before"].splitlines())
        self._after = samples(document["metrics_after"].splitlines())
        self._rows = document["metrics_during"]
        self._seconds = document["seconds"]

    def text(self, passed: float) -> str:
        """Return the text of `/metrics` when the share `passed` (0 to 1) of the scenario is over."""
        row = min(self._rows, key=lambda each: abs(each[0] - passed * self._seconds))
        interpolated = {
            series: self._before.get(series, 0.0) + (last - self._before.get(series, 0.0)) * passed
            for series, last in self._after.items()
        }
        return "".join(f"{series} {value!r}\n" for series, value in {**interpolated, **samples(row[1:])}.items())


class Replay(BaseHTTPRequestHandler):
    """Answers with the recording, as far as it has come since the first request."""

    recording: Recording
    seconds: float
    begun: list[float]

    def do_GET(self) -> None:
        if self.path == "/login/metrics":
            self._answer(401, "")
        elif self.path == "/other/metrics":
            self._answer(200, OTHER)
        elif self.path == "/version":
            self._answer(200, json.dumps({"version": "0.32.0"}))
        elif self.path == "/v1/models":
            self._answer(200, json.dumps({"data": [{"id": "org/m"}]}))
        elif self.path == "/metrics":
            self.begun[:] = self.begun or [time.monotonic()]
            self._answer(200, self.recording.text(min(1.0, (time.monotonic() - self.begun[0]) / self.seconds)))
        else:
            self._answer(404, "")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: Any) -> None:
        pass


def main() -> None:
    """Serve on a free port of loopback until the process is ended."""
    recording = Recording(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    handler = type("Handler", (Replay,), {"recording": recording, "seconds": float(sys.argv[2]), "begun": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
