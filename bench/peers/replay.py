"""Serve a recorded scenario as its server would have been seen at some moment of the load.

The moment is in the address, so that nothing has to wait: `/CASE/SHARE/metrics` is the page of metrics when SHARE of
the load had passed, and `/CASE/SHARE` answers as a Prometheus that had scraped it from the load's beginning. Gauges are
those of the nearest reading, counters grow evenly from the text before the load to the one after it.
"""

from __future__ import annotations

import json
import lzma
import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from bottleneck.telemetry.exposition import Point, parse_line
from bottleneck.telemetry.prometheus_text import MetricsText, delta, histogram_delta


class Recording:
    """A scenario file, read for replay."""

    def __init__(self, path: Path) -> None:
        with lzma.open(path, "rt", encoding="utf-8") as stream:
            self.document = json.load(stream)
        self.seconds = float(self.document["seconds"])
        self.before = MetricsText.parse(self.document.get("metrics_before") or "")
        self._rows = [
            (float(row[0]), [point for line in row[1:] if (point := parse_line(line)) is not None])
            for row in self.document.get("metrics_during") or []
        ]

    def text_at(self, share: float) -> str:
        """Return the page of metrics when a share (0 to 1) of the load has passed."""
        moment = share * self.seconds
        _, gauges = min(self._rows, key=lambda row: abs(row[0] - moment), default=(0.0, []))
        read = {point.name for point in gauges}
        earlier = self.before.to_flat()
        lines = []
        for line in self.document["metrics_after"].splitlines():
            point = None if line.startswith("#") else parse_line(line)
            if point is None:
                lines.append(line)
            elif point.name not in read:
                lines.append(f"{line.rsplit(' ', 1)[0]} {_interpolated(earlier, point, share)!r}")
        lines += [f"{point.key()} {point.value!r}" for point in gauges]
        return "\n".join(lines) + "\n"

    def query(self, expression: str, share: float) -> list[tuple[dict[str, str], float]]:
        """Answer the forms of PromQL that the programs send.

        An instant value, `increase(metric[window])`, and `histogram_quantile` of the rate of a histogram's buckets. The
        window is taken from the load's beginning: nothing was scraped before.

        Raises
        ------
        ValueError
            For any other expression.
        """
        now = MetricsText.parse(self.text_at(share))
        if (found := _QUANTILE.fullmatch(expression)) is not None:
            histogram = histogram_delta(self.before, now, found["name"], **_labels(found["labels"]))
            value = histogram.quantile(float(found["share"])) if histogram else None
            return [] if value is None else [({}, value)]
        if (found := _INCREASE.fullmatch(expression)) is not None:
            points = now.select(found["name"], **_labels(found["labels"]))
            grown = [(point, delta(self.before, now, point.name, **dict(point.labels))) for point in points]
            return [(dict(point.labels), growth.value) for point, growth in grown if growth is not None]
        if (found := _INSTANT.fullmatch(expression)) is not None:
            points = now.select(found["name"], **_labels(found["labels"]))
            return [(dict(point.labels), point.value) for point in points]
        raise ValueError(f"{expression}: this replay answers an instant value, increase(), and a histogram's quantile")


_SELECTOR = r"(?P<name>[a-zA-Z_:][\w:]*)(?P<labels>\{[^}]*\})?"
_INSTANT = re.compile(_SELECTOR)
_INCREASE = re.compile(rf"increase\({_SELECTOR}\[\w+\]\)")
_QUANTILE = re.compile(
    r"histogram_quantile\((?P<share>[\d.]+), sum by \(le\) \(rate\("
    r"(?P<name>[a-zA-Z_:][\w:]*)_bucket(?P<labels>\{[^}]*\})?\[\w+\]\)\)\)"
)


def _labels(selector: str | None) -> dict[str, str]:
    return dict(re.findall(r'(\w+)="([^"]*)"', selector or ""))


def _interpolated(earlier: dict[str, float], point: Point, share: float) -> float:
    start = earlier.get(point.key())
    if start is None:
        # A labelled series that began during the load.
        start = 0.0 if point.name.endswith(("_total", "_count", "_sum", "_bucket")) else point.value
    if point.name.endswith("_created") or not math.isfinite(point.value):
        return point.value
    return start + (point.value - start) * share


@contextmanager
def served(recordings: dict[str, Recording]) -> Iterator[str]:
    """Serve recordings on loopback; the address, without a slash at its end, is what comes out."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            name, _, rest = address.path.strip("/").partition("/")
            share, _, page = rest.partition("/")
            recording = recordings.get(name)
            if recording is None:
                self._answer(404, "text/html", "no such scenario\n")
            elif page == "metrics":
                self._answer(200, "text/plain; version=0.0.4", recording.text_at(float(share)))
            elif page == "api/v1/query":
                self._answer(*_prometheus(recording, parse_qs(address.query)["query"][0], float(share)))
            else:
                self._answer(404, "text/html", "neither metrics nor api/v1/query\n")

        def _answer(self, status: int, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep requests out of the progress."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _prometheus(recording: Recording, expression: str, share: float) -> tuple[int, str, str]:
    try:
        found = recording.query(expression, share)
    except ValueError as error:
        document = {"status": "error", "errorType": "bad_data", "error": str(error)}
        return 400, "application/json", json.dumps(document)
    moment = share * recording.seconds
    result = [{"metric": labels, "value": [moment, repr(value)]} for labels, value in found]
    return (
        200,
        "application/json",
        json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}),
    )
