"""Looks at a control node: sent over ssh as text, needs only Debian's python3. Prints one JSON document.

    python3 -I -S -c INSPECTION INTERFACE ADDRESS PROGRAMS

It reports what it sees; whether that is right is for the laptop to say, which knows the profile.
Nothing is changed. One DHCPDISCOVER goes out, on the cluster's interface alone, to see who answers.
"""

import json
import re
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SERVICES = (
    "salt-master",
    "cluster-interface",
    "cluster-firewall",
    "cluster-dnsmasq",
    "cluster-gateway",
    "chrony",
    "prometheus",
    "ssh",
)
# A server may first ping the address that it is about to offer, for three seconds.
DHCP_SECONDS = 6.0
_MAGIC = b"\x63\x82\x53\x63"
_SERVER_IDENTIFIER, _END, _PAD = 54, 255, 0


def run(*argv: str) -> str:
    """Return what a command prints, or nothing."""
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def interface_facts(name: str) -> dict[str, Any]:
    """Return the state of an interface, its addresses, and over which interfaces the default routes go."""
    folder = Path("/sys/class/net", name)
    link = json.loads(run("ip", "-json", "address", "show", "dev", name) or "[]")
    routes = json.loads(run("ip", "-json", "route", "show", "default") or "[]")
    addresses = [f"{each['local']}/{each['prefixlen']}" for entry in link for each in entry.get("addr_info", [])]
    return {
        "exists": folder.exists(),
        "state": (folder / "operstate").read_text().strip() if folder.exists() else None,
        "addresses": addresses,
        "default_routes": [route.get("dev") for route in routes],
        "others": sorted(path.name for path in Path("/sys/class/net").iterdir() if path.name != "lo"),
    }


def listeners() -> list[dict[str, Any]]:
    """Return the open ports: protocol, address, port and the program, where that can be seen."""
    found = []
    for line in run("ss", "-Hlntup").splitlines():
        words = line.split()
        if len(words) < 5:
            continue
        address, _, port = words[4].rpartition(":")
        holder = re.search(r'"(.*?)",pid=(\d+)', line)
        program = program_of(int(holder[2]), holder[1]) if holder else None
        found.append({"protocol": words[0], "address": address, "port": int(port), "program": program})
    return found


def program_of(pid: int, name: str) -> str:
    """Return the name of a process's program; `name` is the kernel's, and stands when nothing better is to be seen.

    The kernel's is cut at 15 characters, and is that of the interpreter, or its path, for a program like salt-master.
    """
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").split()
    except OSError:
        return name
    named = [Path(word).name for word in words[:2] if not word.startswith("-")]
    return next((each for each in named if each and not each.startswith("python")), name)


def discover() -> bytes:
    """Return a DHCPDISCOVER (RFC 2131) from a client that does not exist."""
    hardware = b"\x02" + secrets.token_bytes(5)  # locally administered
    header = struct.pack("!BBBBIHH4s4s4s4s", 1, 1, 6, 0, secrets.randbits(32), 0, 0x8000, *[bytes(4)] * 4)
    options = bytes([53, 1, 1, 55, 3, 1, 3, 6, _END])
    return header + hardware.ljust(16, b"\0") + bytes(192) + _MAGIC + options


def server_of(packet: bytes, transaction: bytes) -> str | None:
    """Return which server sent an answer to our question, None when it is something else."""
    if len(packet) < 240 or packet[0] != 2 or packet[4:8] != transaction or packet[236:240] != _MAGIC:
        return None
    options = packet[240:]
    position = 0
    while position + 1 < len(options) and options[position] != _END:
        if options[position] == _PAD:
            position += 1
            continue
        kind, length = options[position], options[position + 1]
        value = options[position + 2 : position + 2 + length]
        if kind == _SERVER_IDENTIFIER and len(value) == 4:
            return socket.inet_ntoa(value)
        position += 2 + length
    return None


def dhcp_servers(interface: str) -> dict[str, Any]:
    """Ask for an address as a stranger would, and return who answers."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
            client.bind(("", 68))
            packet = discover()
            servers: set[str] = set()
            deadline = time.monotonic() + DHCP_SECONDS
            again = 0.0
            while (left := deadline - time.monotonic()) > 0:
                if time.monotonic() >= again:
                    client.sendto(packet, ("255.255.255.255", 67))
                    again = time.monotonic() + 2.0
                client.settimeout(min(0.25, left))
                try:
                    server = server_of(client.recv(2048), packet[4:8])
                except TimeoutError:
                    continue
                if server:
                    servers.add(server)
            return {"servers": sorted(servers), "asked": True}
    except OSError as error:
        return {"servers": [], "asked": False, "reason": str(error)}


def keys() -> dict[str, list[str]]:
    """Return the names of the keys that the master holds, by their state."""
    folder = Path("/etc/salt/pki/master")
    states = {
        "accepted": "minions",
        "pending": "minions_pre",
        "denied": "minions_denied",
        "rejected": "minions_rejected",
    }
    return {
        state: sorted(path.name for path in (folder / name).iterdir() if not path.name.startswith("."))
        for state, name in states.items()
        if (folder / name).is_dir()
    }


def images() -> dict[str, Any]:
    """Return the active image of each profile: its digest, and whether its files are there."""
    found: dict[str, Any] = {}
    store = Path("/var/lib/cluster/images")
    for link in sorted(store.glob("active/*")):
        try:
            manifest = json.loads((link / "manifest.json").read_text())
            missing = [name for name in manifest["files"] if not (link / name).is_file()]
            found[link.name] = {"digest": manifest["digest"], "missing": missing}
        except (OSError, ValueError, KeyError) as error:
            found[link.name] = {"digest": None, "reason": str(error)}
    return found


def main() -> None:
    """Look, and print."""
    interface, _, programs = sys.argv[1:]
    version = 'import importlib.metadata as m; print(m.version("salt"))'
    places = [path for path in ("/", "/var/lib/cluster", "/opt/cluster") if Path(path).is_dir()]
    pki = Path("/etc/salt/pki/master")
    document = {
        "unix_seconds": time.time(),
        "system": run("sh", "-c", '. /etc/os-release; printf %s "$PRETTY_NAME"'),
        "interface": interface_facts(interface),
        "listeners": listeners(),
        "services": {name: run("systemctl", "is-active", name).strip() or None for name in SERVICES},
        "salt": run(f"{programs}/python", "-c", version).strip() or None,
        "disk": {path: list(shutil.disk_usage(path)[::2]) for path in places},
        "clock": run("timedatectl", "show", "--property=NTPSynchronized", "--value").strip() or None,
        "keys": keys(),
        "pki_mode": pki.stat().st_mode & 0o777 if pki.is_dir() else None,
        "images": images(),
        "dhcp": dhcp_servers(interface) if Path("/sys/class/net", interface).exists() else {"asked": False},
    }
    json.dump(document, sys.stdout)


if __name__ == "__main__":
    main()
