"""dnsmasq's log, line by line: who asked for an address, who got one, and what TFTP could not deliver.

The log says more than a lease script learns: machines that are ignored, addresses that are
in use by another machine, and transfers that failed. dnsmasq writes in the system's language
unless it is set not to: whatever starts it gives it `ENVIRONMENT`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bottleneck import atomic_files
from netboot.boot.architectures import architecture

log = logging.getLogger(__name__)

ENVIRONMENT: Final[Mapping[str, str]] = {"LC_ALL": "C"}

_ADDRESS = r"\d+\.\d+\.\d+\.\d+"
_MAC = r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}"
_LINE = re.compile(r"dnsmasq-(?P<part>dhcp|tftp)\[\d+\]: (?:(?P<transaction>\d+) )?(?P<text>.*)$")
_REQUEST = re.compile(
    r"(?P<what>DHCPDISCOVER|DHCPOFFER|DHCPREQUEST|DHCPACK|DHCPNAK|DHCPDECLINE|PXE)\([^)]*\) "
    rf"(?:(?P<address>{_ADDRESS}|proxy) )?(?P<mac>{_MAC})(?: (?P<rest>.*))?$"
)
# Whatever the words before it: they are translated, the class is not.
_VENDOR = re.compile(r"[^:]*: (?P<vendor>(?:PXEClient|HTTPClient)\S*)")
_NOT_USED = re.compile(
    rf"not using configured address (?P<address>{_ADDRESS}) because it (?P<why>is leased to (?P<mac>{_MAC})|.*)$"
)
_REFUSED = (
    "no address available",
    "no address configured",
    "no leases left",
    "address in use",
    "address not available",
    "static lease available",
    "wrong",
    "unknown lease",
    "lease not found",
)
_SENT = re.compile(rf"sent (?P<file>\S+) to (?P<address>{_ADDRESS})$")
# What a boot ROM ends a transfer with when all that it wanted was the file's size (the option tsize, RFC 2349).
_ABORTED = re.compile(rf"error (?:0|8) .* received from (?P<address>{_ADDRESS})$")
_TROUBLE = (
    (re.compile(r"file (?P<file>\S+) not found(?: for (?P<address>\S+))?$"), "TFTP: {file} is not there"),
    (re.compile(r"failed sending (?P<file>\S+) to (?P<address>\S+)$"), "TFTP: {file} could not be sent whole"),
    (re.compile(r"cannot access (?:path )?(?P<file>\S+): (?P<why>.*)$"), "TFTP: {file} cannot be read: {why}"),
    (
        re.compile(r"error (?P<number>\d+) (?P<why>.*) received from (?P<address>\S+)$"),
        "TFTP: the machine ended a transfer: {why} (error {number})",
    ),
    (re.compile(r"unsupported request from (?P<address>\S+)$"), "TFTP: it asked for what this server does not do"),
    (re.compile(r"(?P<why>unable to get free port for TFTP)$"), "TFTP: {why}"),
)
# A line about a file in another language, of a dnsmasq that was started by hand.
_FOREIGN = re.compile(rf"(?:.*\s)?(?P<file>/\S+)(?:\s.*?(?P<address>{_ADDRESS}))?")
_FOREIGN_SENT = re.compile(r"verschickt|envoy|przes")
_FOREIGN_NOT_FOUND = re.compile(r"nicht gefunden|non trouv|nie zosta")
_HINT = "dnsmasq does not write English: start it with LC_ALL=C"
_KEPT = 256
LINE_BYTES = 1024
# At most this much is read in one go: a flood on the wire must not hold the service up.
READ_BYTES = 256 * 1024
# A stranger who asks for addresses as fast as he can writes some MB a second into the log.
MOST_LOG_BYTES, KEPT_LOG_BYTES = 16 * 1024 * 1024, 4 * 1024 * 1024


@dataclass(frozen=True)
class Seen:
    """The contents of a line of the log.

    `kind` is `asked` (a machine wants to boot), `given` (it has an address), `ignored` (it is
    no node), `sent` (TFTP delivered the file `file`), or `trouble`. A request that was turned
    down is trouble and `asked` for all that; `holder` is the machine that has its address.
    `machine` is the MAC address that `address` was last seen with.
    """

    kind: str
    mac: str = ""
    address: str = ""
    text: str = ""
    asked: bool = False
    holder: str = ""
    file: str = ""
    machine: str = ""


@dataclass
class Reader:
    """Makes sense of lines that belong together: by transaction, by address, or because one follows another."""

    _vendors: dict[str, str] = field(default_factory=dict)
    _machines: dict[str, str] = field(default_factory=dict)
    _aborted: dict[str, str] = field(default_factory=dict)
    _not_used: tuple[str, str] | None = None
    _last_given: str = ""

    def read(self, line: str) -> Seen | None:
        """Return what `line` says, or None when it says nothing of interest."""
        found = _LINE.search(line[:LINE_BYTES])
        if not found:
            return None
        text, transaction = found["text"], found["transaction"] or ""
        if found["part"] == "tftp":
            return self._tftp(text)
        if not_used := _NOT_USED.match(text):
            self._not_used = (f"{not_used['address']} {not_used['why']}", not_used["mac"] or "")
            return None
        if vendor := _VENDOR.match(text):
            self._vendors[transaction] = vendor["vendor"]
            _bound(self._vendors)
            return None
        request = _REQUEST.match(text)
        return self._dhcp(request, transaction) if request else None

    def _dhcp(self, request: re.Match[str], transaction: str) -> Seen | None:
        vendor_class = self._vendors.get(transaction, "")
        boots = vendor_class.startswith(("PXEClient", "HTTPClient"))
        what, rest, mac, address = request["what"], request["rest"] or "", request["mac"], request["address"] or ""
        if address and address != "proxy":
            self._machines[address] = mac
            _bound(self._machines)
        if rest.startswith("ignored"):
            return Seen("ignored", mac, text=architecture(vendor_class)) if boots else None
        if rest.startswith(_REFUSED):
            why, holder = self._not_used or ("", "")
            self._not_used = None
            text = f"DHCP: {rest.strip()}: {why}" if why else f"DHCP: {rest.strip()}"
            return Seen("trouble", mac, address, text, asked=boots, holder=holder)
        if what in ("DHCPDECLINE", "DHCPNAK"):
            why = rest or "another machine has the node's address"
            return Seen("trouble", mac, address, f"DHCP: {what} of {address}: {why}", asked=boots)
        if not boots:
            return None
        if what in ("DHCPDISCOVER", "PXE"):
            return Seen("asked", mac, address, architecture(vendor_class))
        if what == "DHCPACK":
            self._last_given = address
            return Seen("given", mac, address, architecture(vendor_class))
        return None

    def _tftp(self, text: str) -> Seen | None:
        if aborted := _ABORTED.match(text):
            self._aborted[aborted["address"]] = text
            _bound(self._aborted)
            return None
        if sent := _SENT.match(text):
            self._aborted.pop(sent["address"], None)
            return self._about("sent", sent["address"], Path(sent["file"]).name, Path(sent["file"]).name)
        for pattern, sentence in _TROUBLE:
            if found := pattern.match(text):
                words = found.groupdict()
                address, name = words.get("address") or "", Path(words.get("file") or "").name
                if text.startswith("failed sending") and address in self._aborted:
                    # Trouble only if it does not ask for the file next.
                    del self._aborted[address]
                    sentence = "TFTP: {file} was not loaded: the machine broke off after asking for its size"
                return self._about("trouble", address, sentence.format(**{**words, "file": name}), name)
        return self._foreign(text)

    def _foreign(self, text: str) -> Seen | None:
        found = _FOREIGN.match(text)
        if not found or _FOREIGN_SENT.search(text):
            return None
        name = Path(found["file"]).name
        missing = _FOREIGN_NOT_FOUND.search(text)
        reported = f"TFTP: {name} is not there ({_HINT})" if missing else f"TFTP: {text.replace(found['file'], name)}"
        return self._about("trouble", found["address"] or "", reported, name)

    def _about(self, kind: str, address: str, text: str, file: str) -> Seen:
        """Return what TFTP did; where the line names nobody, it is about the machine that got its address last."""
        address = address or self._last_given
        return Seen(kind, address=address, text=text, file=file, machine=self._machines.get(address, ""))


def _bound(kept: dict[str, str]) -> None:
    while len(kept) > _KEPT:
        del kept[next(iter(kept))]


class Tail:
    """Lines added to a file since it was last looked at, also when it was rotated or emptied."""

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

    def bound(self) -> None:
        """Empty a log that has grown too large, and keep its end beside it as `.1`.

        dnsmasq appends, so it goes on at the new end; what it writes between the two is lost, and so is what had not
        been read yet: in a flood the lines are of no use.
        """
        try:
            size = self._path.stat().st_size
            if size <= MOST_LOG_BYTES:
                return
            try:
                with self._path.open("rb") as file:
                    file.seek(-KEPT_LOG_BYTES, os.SEEK_END)
                    atomic_files.replace(self._path.with_name(self._path.name + ".1"), file.read(KEPT_LOG_BYTES))
            except OSError as error:
                log.warning("The end of %s cannot be kept: %s", self._path, error)
            os.truncate(self._path, 0)
        except OSError as error:
            log.warning("%s cannot be emptied: %s", self._path, error)
            return
        log.warning("%s had %d MB and begins anew: is someone flooding the boot network?", self._path, size // 10**6)
        self._offset, self._rest = 0, b""
