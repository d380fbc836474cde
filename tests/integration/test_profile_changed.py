"""A changed profile on a real master: the event that `cluster sync` fires, the reactor, what the runner answers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import salt._logging
import salt.config
import salt.utils.event
from saltfactories.utils import random_string

from bottleneck.plan.master import reactor_entries
from netboot.boot import storage
from netboot.boot.state import Boot, NodeState, Reached, State
from remote import master_reload
from remote.sync_effects import PROFILE_CHANGED
from tests import boot_profile, fake_image
from tests.waiting import free_port, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

REPOSITORY = Path(__file__).parents[2]
DEADLINE = 90.0
LINKS = {
    name: {"interface": "eth0", "mac": f"02:77:00:00:00:{10 + number}", "address": f"127.0.0.{10 + number}"}
    for number, name in enumerate(("node0", "node1"))
}


@pytest.fixture(scope="session")
def salt_factories_config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    # Salt's early handler would write to a stream that pytest has closed by then.
    salt._logging.shutdown_temp_handler()
    return {"root_dir": str(tmp_path_factory.mktemp("salt")), "start_timeout": 90, "system_service": False}


@pytest.fixture
def master(salt_factories: Any, tmp_path: Path) -> Iterator[Any]:
    """A master whose record says that node0 runs the active image and node1 another."""
    active = fake_image.publish(tmp_path / "images", "changed").digest
    boots = {
        name: NodeState(
            armed="",
            boots=(Boot(name * 4, 1.0, image, LINKS[name]["mac"], name, reached=(Reached("enrolled", 2.0),)),),
        )
        for name, image in (("node0", active), ("node1", "0123456789abcdef"))
    }
    storage.write(tmp_path / "boot", State(nodes=boots))
    control = {"address": "127.0.0.1", "interface": "lo"}
    described = boot_profile.described("changed", control, "127.0.0.0/24", LINKS, {"port": free_port()})
    started = salt_factories.salt_master_daemon(
        random_string("master-"),
        defaults={
            "interface": "127.0.0.1",
            "user": "root" if os.geteuid() == 0 else None,
            "worker_threads": 2,
            "module_dirs": [str(REPOSITORY)],
            "cluster_profile": str(boot_profile.write(tmp_path / "changed.yaml", described)),
            "cluster_directory": str(tmp_path),
            "cluster_images": str(tmp_path / "images"),
            "reactor": reactor_entries(REPOSITORY),
        },
    )
    with started.started():
        yield started


def test_the_reactor_asks_who_is_due(master: Any, tmp_path: Path) -> None:
    programs = tmp_path / "there" / "venv" / "bin"
    programs.mkdir(parents=True)
    real = Path(sys.executable).with_name("salt-run")
    (programs / "salt-run").write_text(f'#!/bin/sh\nexec {real} --config-dir={master.config_dir} "$@"\n')
    (programs / "salt-run").chmod(0o755)
    options = salt.config.master_config(str(Path(master.config_dir) / "master"))
    with salt.utils.event.get_master_event(options, options["sock_dir"], listen=True) as bus:
        assert master_reload.fire(tmp_path / "there", PROFILE_CHANGED)

        def answered() -> Any:
            event = bus.get_event(wait=1, tag="salt/run/", full=True)
            is_it = event and event["tag"].endswith("/ret") and event["data"]["fun"] == "runner.reprovision.changed"
            return event["data"]["return"] if is_it else None

        answer = wait_for(answered, DEADLINE, "an answer of the runner that the reactor calls")
    assert list(answer["due"]) == ["node1"]
    assert "it runs image 0123456789abcdef" in answer["due"]["node1"][0]
    # Nobody has allowed it to act by itself.
    assert answer["started"] is False
