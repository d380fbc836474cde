"""The provisioning network of the netboot tests: one image, one control node, for the whole module."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bottleneck.profile import load_profile
from netboot.boot.rendering import advertised_address
from netboot.boot.settings import Settings
from netboot.image.build import build
from netboot.image.recipe import load_recipe, recipe_digest
from netboot.image.store import Store, cache_directory
from tests import boot_profile
from tests.netboot.machines import FIRMWARE, ControlNode, Network, namespace
from tests.waiting import wait_for

PROGRAMS = ("qemu-system-x86_64", "dnsmasq", "mmdebstrap", "mksquashfs", "ip", "ss")
PROFILE = "netboot-test"
CONTROL = "10.99.7.1"
BRIDGE = "brboot"
MACS = {"node0": "02:99:07:00:00:10", "node1": "02:99:07:00:00:11", "node2": "02:99:07:00:00:12"}
ADDRESSES = {name: f"10.99.7.{10 + number}" for number, name in enumerate(MACS)}


def missing() -> str:
    """Return why virtual machines cannot be booted here, or an empty text."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces and taps"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent or not FIRMWARE.is_file():
        return f"needs {', '.join(absent) or 'OVMF'} (setup/packages netboot)"
    return "" if Path("/dev/net/tun").exists() else "needs /dev/net/tun"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = missing()
    for item in items:
        if reason and item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def images() -> Path:
    """An image store with the base image, built once for each state of its recipe."""
    given = os.environ.get("CLUSTER_NETBOOT_IMAGES")
    recipe = load_recipe()
    # Outside the tree, by everything that goes into it: the next run finds it, a changed recipe does not.
    store = Store(Path(given) if given else cache_directory() / "netboot-tests" / recipe_digest(recipe)[:16])
    built = store.images()
    store.activate(PROFILE, built[0].digest if built else build(recipe, store).digest)
    return store.root


@pytest.fixture(scope="module")
def control(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlNode]:
    """A control node whose boot service answers."""
    folder = tmp_path_factory.mktemp("netboot")
    links = {name: {"interface": "eth0", "mac": mac, "address": ADDRESSES[name]} for name, mac in MACS.items()}
    described = boot_profile.described(
        PROFILE,
        {"address": CONTROL, "interface": BRIDGE},
        "10.99.7.0/24",
        links,
        # One card, with the same name on every machine; the console is read when something fails.
        {"kernel_line": ["console=ttyS0", "net.ifnames=0", "panic=5"]},
    )
    profile = boot_profile.write(folder / "netboot.yaml", described)
    settings = Settings.of(load_profile(profile))
    network: Network
    with namespace(BRIDGE, [f"{CONTROL}/24", advertised_address(settings)]) as network:
        node = ControlNode(network, folder, profile, images)
        node.start()
        wait_for(node.listens, 90, "the boot service listens")
        yield node
