"""Node code that modules share, over a real master: it comes with a sync, and a changed one is used at once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import salt._logging
from saltfactories.utils import random_string

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def salt_factories_config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    # Salt's early handler would write to a stream that pytest has closed by then.
    salt._logging.shutdown_temp_handler()
    return {"root_dir": str(tmp_path_factory.mktemp("salt")), "start_timeout": 90, "system_service": False}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a copy of the tree that nodes are served, laid out as here: links to folders beside it."""
    for name in ("_executors", "_modules", "_states", "_utils", "bottleneck"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, tmp_path / "tree" / name, symlinks=True, ignore=ignored)
    (tmp_path / "tree" / "salt").mkdir()
    for name in ("_executors", "_modules", "_states", "_utils"):
        (tmp_path / "tree" / "salt" / name).symlink_to(f"../{name}")
    return tmp_path / "tree"


@pytest.fixture
def on_node(salt_factories: Any, tree: Path) -> Iterator[Any]:
    """Return what calls a function of the one minion and returns its result."""
    master = salt_factories.salt_master_daemon(
        random_string("master-"),
        defaults={
            "interface": "127.0.0.1",
            "user": "root",
            "worker_threads": 3,
            "file_roots": {"base": [str(tree / "salt")]},
            # A change is to be seen at once.
            "fileserver_list_cache_time": 0,
        },
    )
    with master.started():
        minion = master.salt_minion_daemon(
            random_string("node-"),
            defaults={"user": "root", "enable_fqdns_grains": False, "enable_gpu_grains": False},
        )
        with minion.started():
            client = master.salt_cli(timeout=60)

            def call(function: str, *arguments: str) -> Any:
                return client.run(function, *arguments, minion_tgt=minion.id).data

            yield call


def test_shared_code_comes_with_a_sync_and_a_changed_one_is_used_at_once(on_node: Any, tree: Path) -> None:
    synced = on_node("saltutil.sync_all")
    assert {"utils.node_files", "utils.unit_keeper"} <= set(synced["utils"]), synced
    assert "utils.exposition" in synced["utils"], "a link to the analysis' own file"
    assert on_node("worker.requests") == {} and on_node("telemetry.status")["running"] is False
    shared = tree / "_utils" / "control_groups.py"
    (tree / "_modules" / "shown.py").write_text(
        "import control_groups\n\n\ndef unlimited():\n    return list(control_groups.UNLIMITED)\n"
    )
    on_node("saltutil.sync_all")
    assert on_node("shown.unlimited") == ["max", "-1"]
    shared.write_text(shared.read_text().replace('UNLIMITED = ("max", "-1")', 'UNLIMITED = ("none",)'))
    assert on_node("saltutil.sync_all")["utils"] == ["utils.control_groups"]
    assert on_node("shown.unlimited") == ["none"]
