"""The steps of a node's boot against the boot service of `boot_bench`, each for a test to take or to leave out."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.parse
import urllib.request

from tests import hostile
from tests.boot_bench import Bench


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def fetch_kernel(service: Bench, boot: hostile.Boot) -> None:
    """Fetch the last file that iPXE fetches, and wait until the service knows that it was sent."""
    assert get(f"{service.url}/images/{boot.image}/initrd.img?boot={boot.boot}")[0] == 200
    deadline = time.monotonic() + 30
    while "kernel" not in service.reached():
        assert time.monotonic() < deadline, service.reached()
        time.sleep(0.01)


def report(service: Bench, boot: hostile.Boot, stage: str, detail: str = "", failed: bool = False) -> int:
    form = {"boot": boot.boot, "stage": stage, "detail": detail, **({"failed": "1"} if failed else {})}
    try:
        with urllib.request.urlopen(f"{service.url}/stage", urllib.parse.urlencode(form).encode(), 20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def begin(service: Bench, name: str = "node0") -> hostile.Boot:
    """Bring a node to its boot script."""
    service.asks(name)
    service.now += 3
    return asyncio.run(service.node(name).begin())


def up_to(service: Bench, boot: hostile.Boot, stage: str) -> None:
    """Bring a boot to a stage that the node reports."""
    fetch_kernel(service, boot)
    for each in ("initramfs", "image", "systemd", "minion"):
        service.now += 1
        assert report(service, boot, each) == 204
        if each == stage:
            return
