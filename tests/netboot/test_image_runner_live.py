"""`salt-run image.build` on a running master: a whole build as the control node makes it, and one that fails."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import salt._logging
import yaml
from saltfactories.utils import random_string

from netboot.image.diff import read_contents
from netboot.image.recipe import BASE
from netboot.image.store import Store
from tests import boot_profile
from tests.netboot.test_image_build import DEADLINE_SECONDS, cannot_build

REPOSITORY = Path(__file__).parents[2]
LINK = {"interface": "eth0", "mac": "02:77:00:00:00:10", "address": "127.0.0.10"}

pytestmark = [
    pytest.mark.skipif(bool(cannot_build()), reason=cannot_build() or "can build"),
    pytest.mark.timeout(2 * DEADLINE_SECONDS),
]


@pytest.fixture(scope="session")
def salt_factories_config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    # Salt's early handler would write to a stream that pytest has closed by then.
    salt._logging.shutdown_temp_handler()
    return {"root_dir": str(tmp_path_factory.mktemp("salt")), "start_timeout": 90, "system_service": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("builder")


@pytest.fixture(scope="module")
def master(salt_factories: Any, folder: Path) -> Iterator[Any]:
    control = {"address": "127.0.0.1", "interface": "lo"}
    described = boot_profile.described("builder", control, "127.0.0.0/24", {"node0": LINK}, {})
    described["deployments"]["all"] |= {"nodes": ["node0"], "tensor_parallel": 1}
    profile = boot_profile.write(folder / "builder.yaml", described)
    started = salt_factories.salt_master_daemon(
        random_string("master-"),
        defaults={
            "interface": "127.0.0.1",
            "user": "root" if os.geteuid() == 0 else None,
            "worker_threads": 2,
            "module_dirs": [str(REPOSITORY)],
            "cluster_profile": str(profile),
            "cluster_directory": str(folder),
            "cluster_images": str(folder / "images"),
        },
    )
    with started.started():
        yield started


def recipe(folder: Path, **changed: Any) -> Path:
    """Write a recipe: the base one, at zstd's lowest level, and what else is to be different."""
    document = {**yaml.safe_load(BASE.read_text()), "compression_level": 1, **changed}
    document["salt"]["pins"] = str(BASE.parent / document["salt"]["pins"])
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_build_by_the_runner_is_whole_and_active(master: Any, folder: Path) -> None:
    cli = master.salt_run_cli(timeout=DEADLINE_SECONDS)
    built = cli.run("image.build", f"recipe={recipe(folder)}", "activate=True")
    assert built.returncode == 0, built.stderr
    reported = [
        json.loads(line.removeprefix("@progress ")) for line in built.stderr.splitlines() if "@progress" in line
    ]
    stages = list(dict.fromkeys(report["stage"] for report in reported))
    assert stages[0] == "system" and {"salt", "initramfs", "squashfs"} <= set(stages)
    store = Store(folder / "images")
    digest = built.data["digest"]
    assert store.verify(digest) == [] and store.active("builder") == digest
    assert built.data["packages"] == len(store.manifest(digest).packages)
    assert any("/salt/" in path for path in read_contents(store.folder(digest)))
    # Asked again of the same master, as the CLI does.
    listed = cli.run("image.list")
    assert [(each["digest"], each["roles"]) for each in listed.data["images"]] == [(digest, ["active"])]


def test_a_build_that_cannot_succeed_says_why_and_leaves_nothing(master: Any, folder: Path) -> None:
    before = [manifest.digest for manifest in Store(folder / "images").images()]
    packages = [*yaml.safe_load(BASE.read_text())["packages"], "no-such-package"]
    cli = master.salt_run_cli(timeout=DEADLINE_SECONDS)
    failed = cli.run("image.build", f"recipe={recipe(folder, packages=packages)}")
    # Salt prints a traceback; its last line is the sentence that `cluster image build` shows.
    sentence = "mmdebstrap ended with 25: E: Unable to locate package no-such-package"
    assert failed.stdout.splitlines()[-1] == f"salt.exceptions.CommandExecutionError: {sentence}"
    store = Store(folder / "images")
    assert [manifest.digest for manifest in store.images()] == before
    assert not list(store.root.glob("partial-*"))
