"""Watch a vLLM server from outside: read its `/metrics` again and again for a while."""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from bottleneck.runs.metrics_texts import Reading, readings_document, why_not

INTERVAL_SECONDS = 0.5
# A server that computes a long step may not answer before its end.
READ_SECONDS = 10.0
# What is asked besides, for the note at the top, is not waited for.
ASIDE_SECONDS = 2.0
MAX_BYTES = 32 * 1024 * 1024
MIN_READINGS = 3
METRICS = "/metrics"


class LiveError(Exception):
    """A server that cannot be watched: what was seen, what to do, and whether it could not even be reached."""

    def __init__(self, message: str, next_command: str, unreachable: bool = False) -> None:
        super().__init__(message)
        self.next_command = next_command
        self.unreachable = unreachable


class Watched(NamedTuple):
    """Something that can be measured by itself."""

    document: dict[str, Any]
    unseen: list[str]


def metrics_url(address: str) -> str:
    """Return where the metrics of a server are: `HOST:8000` and `http://HOST:8000` mean its `/metrics`.

    Raises
    ------
    LiveError
        When the address is none of a web server.
    """
    whole = address if "://" in address else f"http://{address}"
    parts = urlsplit(whole)
    try:
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise LiveError(f"--url: {address!r}; expected http://HOST:PORT of a vLLM server", "cluster bottleneck --help")
    path = parts.path.rstrip("/")
    return parts._replace(path=path if path.endswith(METRICS) else path + METRICS, query="", fragment="").geturl()


def watch(address: str, seconds: float, show: Callable[[str], None]) -> Watched:
    """Read a server's metrics for a while.

    Parameters
    ----------
    address
        `http://HOST:PORT`, or the metrics' own address.
    seconds
        How long.
    show
        Called with what is seen meanwhile, in a few words.

    Raises
    ------
    LiveError
        When the server cannot be read at all, or is not vLLM.
    """
    url = metrics_url(address)
    opener = _opener(url)
    readings = [_first(opener, url)]
    failed = 0
    end = readings[0].moment + seconds
    while (now := time.monotonic()) < end:
        time.sleep(min(INTERVAL_SECONDS, end - now))
        try:
            readings.append(_read(opener, url))
        except (OSError, ValueError, http.client.HTTPException):
            failed += 1
        show(f"{len(readings)} readings" + (f", {failed} unanswered" if failed else ""))
    if len(readings) < MIN_READINGS:
        raise LiveError(
            f"{url} answered {len(readings)} times in {seconds:g} s; expected {MIN_READINGS} at least",
            f"cluster bottleneck --url {address} --seconds {max(60, int(seconds) * 3)}",
        )
    base = url.removesuffix(METRICS)
    version = _aside(opener, f"{base}/version").get("version")
    models = _aside(opener, f"{base}/v1/models").get("data")
    model = models[0].get("id") if isinstance(models, list) and models and isinstance(models[0], dict) else None
    words = {"scenario": urlsplit(url).netloc, "engine": f"vLLM {version}" if version else None, "model": model}
    document = readings_document(readings, **{key: word for key, word in words.items() if word})
    return Watched(document, _unseen(document, failed, len(readings)))


def _unseen(document: dict[str, Any], failed: int, answered: int) -> list[str]:
    found = [
        "only the server's own metrics were read: its machine, its links and its clients were not watched",
        "the server's settings are not in its metrics: its limits (max_num_seqs, token budget) are read off what ran",
    ]
    if failed:
        found.append(f"{failed} of {failed + answered} readings were not answered in {READ_SECONDS:g} s")
    if document["metrics_before"] == document["metrics_after"]:
        found.append("nothing changed while it was watched: send it requests meanwhile, or watch it for longer")
    return found


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Return what asks a server: not through a proxy when its address is of this machine or a private network."""
    host = urlsplit(url).hostname or ""
    try:
        near = ipaddress.ip_address(host).is_private
    except ValueError:
        near = host == "localhost" or "." not in host or host.endswith(".local")
    return urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if near else []))


def _first(opener: urllib.request.OpenerDirector, url: str) -> Reading:
    """Return the first reading; raise with the reason when there is none, or it is of something else."""
    try:
        reading = _read(opener, url)
    except urllib.error.HTTPError as error:
        refused = error.code in (401, 403)
        reason = "asks for a login" if refused else f"answers with status {error.code}"
        raise LiveError(
            f"{url} {reason}; expected the metrics of vLLM", f"curl -i {url}", unreachable=refused
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise LiveError(f"{url} cannot be read: {_why(error, url)}", f"curl -i {url}", unreachable=True) from None
    if reason := why_not(reading.text):
        raise LiveError(f"{url}: {reason}", f"curl -s {url} | grep vllm")
    return reading


def _why(error: Exception, url: str) -> str:
    """Return why nothing was read, and what that usually means."""
    found = getattr(error, "reason", None)
    cause = found if isinstance(found, Exception) else error
    host, scheme = urlsplit(url).hostname, urlsplit(url).scheme
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted here ({cause.verify_message}); SSL_CERT_FILE names who is trusted"
    if isinstance(cause, ssl.SSLError):
        return f"no TLS there ({cause.reason}); expected http://, not https://"
    if isinstance(cause, TimeoutError):
        return f"no answer within {READ_SECONDS:g} s: it hangs, or something between drops what is sent there"
    if isinstance(cause, socket.gaierror):
        return f"the name {host} is not known here ({cause.strerror})"
    if isinstance(cause, ConnectionRefusedError):
        return f"{cause.strerror}: nothing listens there, or on another address of {host} only"
    if isinstance(cause, http.client.HTTPException | ConnectionResetError):
        closed = "the connection was closed without an answer"
        return f"{closed}: does it speak https://?" if scheme == "http" else closed
    return str(cause)


def _read(opener: urllib.request.OpenerDirector, url: str) -> Reading:
    moment = time.monotonic()
    with opener.open(url, timeout=READ_SECONDS) as answer:
        return Reading(moment, answer.read(MAX_BYTES).decode("utf-8", "replace"))


def _aside(opener: urllib.request.OpenerDirector, url: str) -> dict[str, Any]:
    """Return a JSON object that the server may have, else an empty one."""
    try:
        with opener.open(url, timeout=ASIDE_SECONDS) as answer:
            found = json.loads(answer.read(MAX_BYTES))
    except (OSError, ValueError, http.client.HTTPException):
        return {}
    return found if isinstance(found, dict) else {}
