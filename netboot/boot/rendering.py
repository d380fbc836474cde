"""The texts that boot a node: dnsmasq's configuration and the iPXE scripts."""

from __future__ import annotations

import hashlib
import ipaddress
from pathlib import Path
from typing import Any

import jinja2

from bottleneck import atomic_files
from netboot.boot.images import Bootable
from netboot.boot.settings import BootNode, Settings

FIRST_SCRIPT = "first.ipxe"
LEASE_SECONDS = 3600
# What iPXE's package calls them.
IPXE_DIRECTORY = Path("/usr/lib/ipxe")
IPXE_FILES = ("undionly.kpxe", "snponly.efi")

_templates = jinja2.Environment(  # noqa: S701 - neither HTML nor anything that a node said
    loader=jinja2.PackageLoader("netboot.boot", "templates"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)


def dnsmasq_configuration(
    settings: Settings,
    *,
    tftp_directory: Path,
    run_directory: Path,
    log_file: Path,
    user: str = "nobody",
) -> str:
    """Return dnsmasq's configuration for one cluster, bound to its one interface."""
    network = ipaddress.IPv4Network(settings.subnet)
    return _templates.get_template("dnsmasq.conf.j2").render(
        profile=settings.profile,
        interface=settings.interface,
        address=settings.address,
        dhcp=settings.dhcp,
        nodes=list(settings.nodes.values()),
        subnet_address=network.network_address,
        netmask=network.netmask,
        lease_seconds=LEASE_SECONDS,
        ra_prefix=advertised_network(settings).network_address,
        first_script=FIRST_SCRIPT,
        tftp_directory=tftp_directory,
        run_directory=run_directory,
        log_file=log_file,
        user=user,
    )


def advertised_network(settings: Settings) -> ipaddress.IPv6Network:
    """Return the IPv6 network that is advertised so that iPXE does not wait for one (RFC 4193, from the subnet)."""
    digest = hashlib.sha256(settings.subnet.encode()).digest()
    return ipaddress.IPv6Network((b"\xfd" + digest[:7] + bytes(8), 64))


def advertised_address(settings: Settings) -> str:
    """Return the address in that network which the control node's interface needs, with its prefix length."""
    return f"{advertised_network(settings)[1]}/64"


def first_script(settings: Settings) -> str:
    """Return the script that TFTP serves: it asks the boot service, with back-off, until it answers."""
    return _templates.get_template("first.ipxe.j2").render(url=settings.url)


def boot_script(settings: Settings, node: BootNode, boot: str, nonce: str, image: Bootable) -> str:
    """Return the script that boots `node` once, with the nonce of this boot."""
    arguments: dict[str, Any] = {
        "url": settings.url,
        "boot": boot,
        "node": node.name,
        "id": node.minion_id,
        "image": image.digest,
        "sha256": image.sha256,
        "layers": ",".join(image.layers),
        "nonce": nonce,
    }
    line = " ".join([*settings.kernel_line, *(f"cluster.{key}={value}" for key, value in arguments.items() if value)])
    return _templates.get_template("boot.ipxe.j2").render(
        url=settings.url, node=node, boot=boot, image=image.digest, arguments=line
    )


def wait_script(text: str, seconds: int) -> str:
    """Return the script that says why there is no boot now, waits, and asks again."""
    return _templates.get_template("wait.ipxe.j2").render(text=text, seconds=seconds)


def write_all(
    settings: Settings, directory: Path, *, log_file: Path, ipxe: Path = IPXE_DIRECTORY, user: str = "nobody"
) -> list[Path]:
    """Put dnsmasq.conf and tftp/ into `directory`; return the files that were not right already.

    Raises
    ------
    FileNotFoundError
        When iPXE's files are not installed (Debian: the package `ipxe`).
    """
    tftp = directory / "tftp"
    tftp.mkdir(parents=True, exist_ok=True)
    configuration = dnsmasq_configuration(
        settings, tftp_directory=tftp, run_directory=directory, log_file=log_file, user=user
    )
    wanted = {tftp / name: (ipxe / name).read_bytes() for name in IPXE_FILES}
    wanted[tftp / FIRST_SCRIPT] = first_script(settings).encode()
    wanted[directory / "dnsmasq.conf"] = configuration.encode()
    return [path for path, content in wanted.items() if _write(path, content)]


def _write(path: Path, content: bytes) -> bool:
    if path.is_file() and path.read_bytes() == content:
        return False
    atomic_files.replace(path, content)
    return True
