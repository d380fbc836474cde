"""Attempts of a stranger on the provisioning wire that are no claims in good form: raw requests to the boot service.

Sent byte by byte as they stand here, because a client of good manners would put most of them right. An attempt has
failed when nothing of the record comes back, no nonce, and the master's keys are as before.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from netboot.boot.enrolment import master_proof
from tests.hostile import ATTACKER, SIDE_BY_SIDE, Boot

STATUS = re.compile(rb"HTTP/\d\.\d (\d{3}) ")
ANSWER_SECONDS = 30.0
# So long nothing comes before a connection is half closed.
MORE_SECONDS = 2.0
# What a script and the record have, and no answer to any of these may.
SECRETS = (b"nonce", b"enrolled_key")
_PATHS = (
    "/images/../../boot/boots.json",
    "/images/%2e%2e/%2e%2e/boot/boots.json",
    "/images/..%2f..%2fboot/boots.json",
    "/images/0000000000000000/..%2f..%2f..%2fboot%2fboots.json",
    "/layers/..%2f..%2fboot%2fboots.json",
    "/layers/%2e%2e%2f%2e%2e%2fsecrets%2froot.key",
    "/layers/..\\..\\boot\\boots.json",
    "/images/{image}/%00initrd.img",
    "/images/{image}/.",
    "//boot/boots.json",
    "/boots.json",
    "/commands",
    "/enrol/../../boot/boots.json",
    "http://127.0.0.1/boots.json",
    "/images/{image}/" + "a" * 4000,
)
_BOMB = gzip.compress(b"0" * 8_000_000, 1)
_METHODS = ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "POST\x0b")


@dataclass
class Stranger:
    """Makes requests from what was seen on the wire: a script that waits for its claim, and a captured claim."""

    open: Boot
    captured: dict[str, str]
    own_pub: str

    def kinds(self) -> dict[str, Callable[[int], bytes]]:
        """Return kind -> what makes the bytes of its attempts."""
        return {
            "a path out of the image store": lambda n: _request(
                "GET", _PATHS[n % len(_PATHS)].format(image=self.open.image)
            ),
            "another method": lambda n: _request(
                _METHODS[n % len(_METHODS)], ("/enrol", "/script", "/stage", "/images")[n % 4], b"{}"
            ),
            "no HTTP at all": lambda n: _RUBBISH[n % len(_RUBBISH)],
            "a body of two lengths": lambda n: self._two_lengths(n),
            "stages of boots that nobody began": lambda n: _request(
                "POST", "/stage", f"boot={n:032x}&stage=enrolled&detail=x&failed={n % 2}".encode()
            ),
            "what Prometheus reads": lambda n: _request("GET", ("/metrics", "/metrics?x=1", "/metrics/")[n % 3]),
            "the control node's own proof as a node's": lambda _: self._claim(
                {**self.open.claim(self.own_pub), "proof": self._master_proof()}
            ),
            "a claim with each field twice": lambda n: self._twice(n),
            "a claim in another encoding": lambda n: self._encoded(n),
        }

    def _master_proof(self) -> str:
        return master_proof(self.open.nonce, self.open.boot, self.open.id, self.own_pub)

    def _claim(self, claim: dict[str, str]) -> bytes:
        return _request("POST", "/enrol", json.dumps(claim).encode())

    def _twice(self, number: int) -> bytes:
        """Return a captured claim with one of its fields a second time: for whoever checks one and takes the other."""
        changed = (("pub", self.own_pub), ("proof", "0" * 64), ("id", "node9"), ("boot", "0" * 32))[number % 4]
        pairs = [*self.captured.items(), changed]
        text = ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in pairs)
        return _request("POST", "/enrol", b"{" + text.encode() + b"}")

    def _encoded(self, number: int) -> bytes:
        text = json.dumps({**self.captured, "pub": self.own_pub})
        bodies = (
            (gzip.compress(text.encode()), "Content-Encoding: gzip\r\n"),
            (_BOMB, "Content-Encoding: gzip\r\n"),
            (text.encode("utf-16"), "Content-Type: application/json; charset=utf-16\r\n"),
            (text.encode("utf-7"), "Content-Type: application/json; charset=utf-7\r\n"),
            (b"\xef\xbb\xbf" + text.encode(), ""),
        )
        return _request("POST", "/enrol", *bodies[number % len(bodies)])

    def _two_lengths(self, number: int) -> bytes:
        """Return a request in which another is hidden, for whoever reads the wrong one of its two lengths."""
        hidden = _request("GET", "/metrics")
        headers = (
            f"Content-Length: {len(hidden) + 5}\r\nTransfer-Encoding: chunked\r\n",
            f"Content-Length: 0\r\nContent-Length: {len(hidden) + 5}\r\n",
            "Transfer-Encoding: chunked, identity\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 99999999999999999999\r\n",
        )[number % 5]
        return f"POST /enrol HTTP/1.1\r\nHost: x\r\n{headers}\r\n0\r\n\r\n".encode() + hidden


_RUBBISH = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
    b"\x00" * 4096,
    b"GET\r\n\r\n",
    b"GET /metrics HTTP/9.9\r\n\r\n",
    b"GET /metrics\r\n\r\n",
    b"GET /script?mac=" + b"A" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /script HTTP/1.1\r\n" + b"X-A: b\r\n" * 5_000 + b"\r\n",
    b"GET /script HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
    b"GET /metrics HTTP/1.1\nHost: x\n\x01: y\n\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
    b"\r\n" * 2000,
)


def _request(method: str, target: str, body: bytes = b"", headers: str = "") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    head = f"{method} {target} HTTP/1.1\r\nHost: boot\r\nConnection: close\r\n{headers}{length}\r\n"
    return head.encode("latin-1") + body


async def send(host: str, port: int, requests: Iterator[bytes], source: str = ATTACKER) -> dict[int, int]:
    """Send each request over a connection of its own, some side by side; return status -> how often, 0 for none.

    Raises AssertionError when an answer has a secret in it.
    """
    answers: dict[int, int] = {}

    async def work() -> None:
        for request in requests:
            answer = await _exchange(host, port, request, source)
            assert not any(secret in answer for secret in SECRETS), f"{request[:200]!r}: {answer[:500]!r}"
            # With a hidden request there may be two answers.
            for status in [int(found) for found in STATUS.findall(answer)] or [0]:
                answers[status] = answers.get(status, 0) + 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(SIDE_BY_SIDE):
            tasks.create_task(work())
    return answers


async def _exchange(host: str, port: int, request: bytes, source: str) -> bytes:
    try:
        reader, writer = await asyncio.open_connection(host, port, local_addr=(source, 0))
    except OSError:
        return b""
    answer = b""
    try:
        writer.write(request)
        while True:
            try:
                piece = await asyncio.wait_for(reader.read(1 << 16), MORE_SECONDS)
            except TimeoutError:
                # What is no whole request waits for more: now there is none.
                writer.write_eof()
                piece = await asyncio.wait_for(reader.read(1 << 16), ANSWER_SECONDS)
            if not piece:
                return answer
            answer += piece
    except (OSError, TimeoutError):
        return answer
    finally:
        writer.close()
