"""dnsmasq's log, line by line: who asked for an address, who got one, and what TFTP could not deliver.

The log says more than a lease script is told: machines that are ignored, addresses that are
in use by another machine, and transfers that failed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_LINE = re.compile(r"dnsmasq-(?P<part>dhcp|tftp)\[\d+\]: (?:(?P<transaction>\d+) )?(?P<text>.*)$")
_REQUEST = re.compile(
    r"(?P<what>DHCPDISCOVER|DHCPOFFER|DHCPREQUEST|DHCPACK|DHCPNAK|DHCPDECLINE|PXE)\([^)]*\) "
    r"(?:(?P<address>\d+\.\d+\.\d+\.\d+|proxy) )?(?P<mac>(?:[0-9a-f]{2}:){5}[0-9a-f]{2})(?: (?P<rest>.*))?$"
)
_VENDOR = re.compile(r"vendor class: (?P<vendor>\S+)")
_SENT = re.compile(r"sent (?P<file>\S+) to (?P<address>\d+\.\d+\.\d+\.\d+)$")
_TROUBLE = (
    (re.compile(r"file (?P<file>\S+) not found for (?P<address>\S+)$"), "TFTP: {file} is not there"),
    (re.compile(r"failed sending (?P<file>\S+) to (?P<address>\S+)$"), "TFTP: {file} could not be sent whole"),
    (re.compile(r"cannot access (?P<file>\S+): (?P<why>.*)$"), "TFTP: {file}: {why}"),
)
ARCHITECTURES = {
    "00000": "BIOS",
    "00007": "UEFI x86-64",
    "00009": "UEFI x86-64",
    "00006": "UEFI x86",
    "00011": "UEFI arm64",
}
SUPPORTED = ("BIOS", "UEFI x86-64")
_TRANSACTIONS_KEPT = 256
LINE_BYTES = 1024
# At most this much is read in one go: a flood on the wire must not hold the service up.
READ_BYTES = 256 * 1024


@dataclass(frozen=True)
class Seen:
    """What a line of the log says.

    `kind` is `asked` (a machine wants to boot), `given` (it has an address), `ignored` (it is
    no node), `sent` (TFTP delivered), or `trouble`.
    """

    kind: str
    mac: str = ""
    address: str = ""
    text: str = ""


@dataclass
class Reader:
    """Makes sense of lines that belong together by their transaction."""

    _vendors: dict[str, str] = field(default_factory=dict)

    def read(self, line: str) -> Seen | None:
        """Return what `line` says, or None when it says nothing of interest."""
        found = _LINE.search(line[:LINE_BYTES])
        if not found:
            return None
        text, transaction = found["text"], found["transaction"] or ""
        if found["part"] == "tftp":
            return _tftp(text)
        if vendor := _VENDOR.match(text):
            self._vendors[transaction] = vendor["vendor"]
            while len(self._vendors) > _TRANSACTIONS_KEPT:
                del self._vendors[next(iter(self._vendors))]
            return None
        request = _REQUEST.match(text)
        if not request:
            return None
        vendor_class = self._vendors.get(transaction, "")
        boots = vendor_class.startswith(("PXEClient", "HTTPClient"))
        what, rest, mac, address = request["what"], request["rest"] or "", request["mac"], request["address"] or ""
        if rest.startswith("ignored"):
            return Seen("ignored", mac, text=_architecture(vendor_class)) if boots else None
        if rest.startswith(("no address available", "address in use", "address not available", "wrong")):
            return Seen("trouble", mac, address, f"DHCP: {rest}")
        if what in ("DHCPDECLINE", "DHCPNAK"):
            why = rest or "another machine has the node's address"
            return Seen("trouble", mac, address, f"DHCP: {what} of {address}: {why}")
        if not boots:
            return None
        if what in ("DHCPDISCOVER", "PXE"):
            return Seen("asked", mac, address, _architecture(vendor_class))
        if what == "DHCPACK":
            return Seen("given", mac, address, _architecture(vendor_class))
        return None


def _tftp(text: str) -> Seen | None:
    sent = _SENT.match(text)
    if sent:
        return Seen("sent", address=sent["address"], text=Path(sent["file"]).name)
    for pattern, sentence in _TROUBLE:
        found = pattern.match(text)
        if found:
            words = found.groupdict()
            words["file"] = Path(words["file"]).name
            return Seen("trouble", address=words.pop("address", ""), text=sentence.format(**words))
    return None


def _architecture(vendor: str) -> str:
    code = re.search(r"Arch:(\d{5})", vendor)
    return ARCHITECTURES.get(code[1], f"architecture {int(code[1])}") if code else ""


class Tail:
    """What was added to a file since it was last looked at, also when it was rotated or emptied."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode: int | None = None
        self._offset = 0
        self._rest = b""

    def skip(self) -> None:
        """Begin at the end: what was logged before is not news."""
        try:
            status = self._path.stat()
        except OSError:
            return
        self._inode, self._offset = status.st_ino, status.st_size

    def lines(self) -> Iterator[str]:
        """Return the new lines, whole ones only."""
        try:
            with self._path.open("rb") as file:
                status = self._path.stat()
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._inode, self._offset, self._rest = status.st_ino, 0, b""
                file.seek(self._offset)
                added = file.read(READ_BYTES)
        except OSError:
            return
        self._offset += len(added)
        *whole, self._rest = (self._rest + added).split(b"\n")
        self._rest = self._rest[-LINE_BYTES:]
        for line in whole:
            yield line.decode("ascii", "replace")
