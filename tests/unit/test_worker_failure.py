"""A node's answer about a worker that failed: the reason of its whole log and of how it ended, and where it stands."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.by_file import load


@pytest.fixture
def worker() -> ModuleType:
    module = load("_modules/worker.py", "worker_module")
    module.__opts__ = {"id": "node-a"}
    return module


def answer(
    module: ModuleType, folder: Path, text: str, exit_code: int | None, oom_kills: int | None = None
) -> dict[str, Any]:
    log = folder / "worker.log"
    log.write_text(text)
    unit = {"log": str(log), "exit_code": exit_code, "pid": 7, "oom_kills": oom_kills}
    found: dict[str, Any] = module._failed("tp2-0", unit, "vllm_failures")
    return found


def test_names_of_the_node_and_the_deployment_are_filled_in(worker: ModuleType, tmp_path: Path) -> None:
    seen = answer(
        worker, tmp_path, "ERROR 11-20 10:00:00 [core.py:1] ValueError: No available memory for the cache blocks.\n", 1
    )
    assert seen["reason"].endswith("next: cluster deploy tp2 --set gpu_memory_utilization=0.95")
    assert seen["failure"]["rank"] == 0 and seen["failure"]["moment"] is not None
    seen = answer(worker, tmp_path, "OSError: [Errno 98] Address already in use\n", 1)
    assert seen["reason"].endswith("next: cluster salt -- node-a cmd.run 'ss -ltnp'")


def test_rules_are_found_when_the_loader_is_done(
    worker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minion runs a function without the folder of `_utils` on Python's path: it is there while modules load."""
    monkeypatch.setattr(sys, "path", [each for each in sys.path if Path(each).name != "_utils"])
    for name in ("vllm_failures", "model_failures"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    seen = answer(worker, tmp_path, "ValueError: No available memory for the cache blocks.\n", 1)
    assert "the KV cache does not fit" in seen["reason"]


@pytest.mark.parametrize(
    ("exit_code", "part"),
    [(-9, "was killed by signal 9"), (137, "was killed by signal 9"), (-11, "ended with signal 11"), (-4, "signal 4")],
)
def test_a_worker_that_ended_without_a_word(worker: ModuleType, tmp_path: Path, exit_code: int, part: str) -> None:
    seen = answer(worker, tmp_path, "(EngineCore pid=1) INFO 11-20 10:00:00 [core.py:1] Loading weights\n", exit_code)
    assert part in seen["reason"] and "tp2-0" in seen["reason"]


RANK_DIED = "ERROR 11-27 10:00:00 [x.py:1] Worker proc VllmWorker-0 died unexpectedly (exit code: -9), shutting down\n"


@pytest.mark.parametrize(
    ("text", "exit_code"), [(RANK_DIED, 1), ("", -9), ("", 137)], ids=["a rank", "program", "shell"]
)
@pytest.mark.parametrize(
    ("oom_kills", "name", "words"),
    [
        (0, "killed_from_outside", "from outside, and not for want of memory"),
        (1, "memory_full", "ran out of memory"),
        (None, "killed", "most likely the kernel ended it"),
    ],
    ids=["none counted", "one counted", "nobody counts"],
)
def test_signal_9_is_named_by_what_the_kernel_counted(
    worker: ModuleType, tmp_path: Path, text: str, exit_code: int, oom_kills: int | None, name: str, words: str
) -> None:
    """A rank that was killed by hand was said to have run out of memory, most likely."""
    seen = answer(worker, tmp_path, text, exit_code, oom_kills)
    assert seen["failure"]["name"] == name and words in seen["reason"]


def test_who_says_that_memory_ran_out_is_believed_whatever_the_group_counted(
    worker: ModuleType, tmp_path: Path
) -> None:
    seen = answer(worker, tmp_path, "cluster-worker-tp2-0.service: Failed with result 'oom-kill'\n", 1, 0)
    assert "most likely the kernel ended it" in seen["reason"]


@pytest.mark.parametrize("exit_code", [0, 1, None])
def test_a_worker_that_reported_nothing(worker: ModuleType, tmp_path: Path, exit_code: int | None) -> None:
    seen = answer(worker, tmp_path, "all is well\n", exit_code)
    assert seen == {"reason": f"the worker ended with exit code {exit_code} and reported nothing", "failure": None}


def test_a_cause_is_found_far_above_what_followed(worker: ModuleType, tmp_path: Path) -> None:
    """Of eight ranks, each with its own long account of the peer that it lost: more than what `log` shows."""
    cause = "(Worker_TP3 pid=3) ERROR 11-20 10:00:00 [m.py:1] ValueError: No available memory for the cache blocks.\n"
    frames = "".join(
        f'(Worker_TP{rank} pid={rank}) ERROR 11-20 10:00:01 [m.py:1]   File "/opt/engine/f{frame}.py", line {frame}\n'
        for rank in range(8)
        for frame in range(500)
    )
    closed = (
        "(Worker pid=1) ERROR 11-20 10:00:01 [m.py:1] RuntimeError: [x/gloo/pair.cc:534] Connection closed by peer\n"
    )
    seen = answer(worker, tmp_path, cause + frames + closed, 1)
    assert len(frames) > 250_000 and seen["failure"]["name"] == "kv_cache_no_memory"
