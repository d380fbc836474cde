"""The reason of a failure: each rule by an example log, logs of public threads, which of two messages is the cause."""

from __future__ import annotations

import calendar
import re
import time
from pathlib import Path
from typing import Any

import failure_reasons
import hub_failures
import log_events
import pytest
import vllm_failures
import yaml
from failure_reasons import Rank, Rules

DATA = Path(__file__).parents[1] / "data"
FIELD_CASES = DATA / "field-cases" / "logs"
VLLM, HUB = vllm_failures.ENGINE_RULES, hub_failures.HUB


def examples() -> list[Any]:
    found = []
    for file in sorted((DATA / "failures").glob("*.yaml")):
        for number, example in enumerate(yaml.safe_load(file.read_text())):
            hub = file.stem == "hub" and example.get("engine") != "vllm"
            name = f"{file.stem}-{number}-{example['rule']}"
            found.append(pytest.param(example, HUB if hub else VLLM, id=name))
    return found


@pytest.mark.parametrize(("example", "rules"), examples())
def test_what_a_message_means(example: dict[str, Any], rules: Rules) -> None:
    found = failure_reasons.reason(example["log"].splitlines(), rules)
    assert found is not None and found.name == example["rule"]
    for part in example["says"]:
        assert part in found.sentence
    assert "{" not in found.sentence.replace(example["log"], "") or "{" in example["log"]


def test_every_rule_has_an_example() -> None:
    shown = {example.values[0]["rule"] for example in examples()}
    assert {rule.name for rule in (*VLLM.rules, *HUB.rules)} == shown


@pytest.mark.parametrize(
    "rule", {id(rule): rule for rule in (*VLLM.rules, *HUB.rules)}.values(), ids=lambda rule: rule.name
)
def test_what_a_rule_says_can_be_filled(rule: failure_reasons.Rule) -> None:
    """A place outside of square brackets is filled by each of the rule's patterns; one inside by at least one."""
    groups = [set(re.compile(pattern).groupindex) | {"text", "type", "library"} for pattern in rule.patterns]
    needed = set(re.findall(r"\{(\w+)", re.sub(r"\[[^\[\]]*\]", "", rule.says)))
    asked = set(re.findall(r"\{(\w+)", rule.says)) | {
        name for line in rule.next for name in re.findall(r"\{(\w+)", line)
    }
    assert asked <= set().union(*groups)
    assert all(needed <= each for each in groups), needed
    assert rule.next


# What the field cases' own README asks of each.
SAYS = {
    "pydantic-model-config": ["No model architectures are specified"],
    "rocm-memory-access-fault": ["GPU node-1 had a memory access fault", "Page not present"],
    "nccl-roce-qp-timeout": ["ibv_modify_qp", "rocep1s0f1:1", "198.51.100.12", "Connection timed out"],
    "nccl-roce-without-debug": ["NCCL: unhandled system error", "NCCL_DEBUG=WARN"],
    "nccl-dev-shm-full": ["/dev/shm is too small for NCCL's segment of 7.3 MB"],
    "store-wait-timeout": ["the other rank did not come within 30 minutes"],
    "kv-cache-too-small": [
        "the KV cache does not fit: 4.54 GiB are needed for 131072 tokens, 1.71 GiB are free",
        "49216 tokens of 131072 would fit",
        "--set max_model_len=49216",
    ],
    "free-memory-less-than-desired": ["other programs hold", "3.22 of 4.0 GiB are free, 3.6 GiB are asked for"],
    "worker-killed-minus-9": ["EngineCore was killed by signal 9: most likely the kernel", "out of memory"],
    "oneccl-no-provider": ["oneCCL found no libfabric provider"],
    "rdma-memlock": ["the locked-memory limit is too low for RDMA", "ulimit -l"],
    "rpc-timeout-one-node-cpu": ["one step took longer than its limit", "execute_model"],
    "harmless-error-line-first": ["the KV cache does not fit: 46.5 GiB are needed", "20.1 GiB are free"],
}


@pytest.mark.parametrize("name", sorted(path.stem for path in FIELD_CASES.glob("*.log")))
def test_logs_of_public_threads(name: str) -> None:
    found = failure_reasons.reason((FIELD_CASES / f"{name}.log").read_text().splitlines(), VLLM)
    assert found is not None
    for part in SAYS[name]:
        assert part in found.sentence
    assert "; next: cluster " in found.sentence


def reason_of(*lines: str, rules: Rules = VLLM) -> failure_reasons.Reason | None:
    return failure_reasons.reason(list(lines), rules)


HARMLESS = [text.splitlines() for text in yaml.safe_load((DATA / "harmless_lines.yaml").read_text())]


@pytest.mark.parametrize("lines", HARMLESS, ids=lambda lines: lines[0][:60])
def test_what_only_sounds_like_a_failure(lines: list[str]) -> None:
    assert reason_of(*lines) is None


def test_a_message_whose_first_line_alone_has_a_prefix_is_read_whole() -> None:
    found = reason_of(
        "(APIServer pid=1) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
        "  Value error, No model architectures are specified [type=value_error, input_value=ArgsKwargs((), {})]",
        "    For further information visit https://errors.pydantic.dev/2.12/v/value_error",
    )
    assert found is not None and found.name == "no_architecture"


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["INFO all is well"],
        # Warnings that quote errors, and what an INFO line reports of a wait.
        [
            "WARNING 11-20 10:00:00 [interface.py:222] Failed to import from vllm._C: "
            "ImportError('libcuda.so.1: cannot open shared object file')",
            "ERROR 11-20 10:00:00 [config.py:29] Failed to import Triton kernels. Error: No module named 'triton'",
            "ERROR: ld.so: object 'libtcmalloc.so.4' from LD_PRELOAD cannot be preloaded: ignored.",
            "[W1120 10:00:00.142961975 socket.cpp:767] [c10d] The client socket cannot be initialized to connect to "
            "[node-a]:29500 (errno: 97 - Address family not supported by protocol).",
            "node-a:1:2 [0] NCCL INFO NET/Plugin: Could not find: libnccl-net.so. No such file or directory",
            "(EngineCore pid=9) INFO 11-20 10:00:00 [shm_broadcast.py:705] No available shared memory block found",
            "(APIServer pid=1) INFO:     Application startup complete.",
        ],
        # Source code in a traceback whose exception was lived through.
        [
            "(APIServer pid=1) ERROR 11-20 10:00:00 [serving.py:9] Error in preprocessing prompt inputs",
            "(APIServer pid=1) ERROR 11-20 10:00:00 [serving.py:9] Traceback (most recent call last):",
            '(APIServer pid=1) ERROR 11-20 10:00:00 [serving.py:9]   File "/opt/engine/x.py", line 3, in f',
            '(APIServer pid=1) ERROR 11-20 10:00:00 [serving.py:9]     raise ValueError("CUDA out of memory")',
            "(APIServer pid=1) ERROR 11-20 10:00:00 [serving.py:9] ValueError: the prompt is too long",
        ],
        [
            "(APIServer pid=1) Exception ignored in: <function NCCLCommunicator.__del__ at 0x7f4d8c3212d0>",
            "(APIServer pid=1) Traceback (most recent call last):",
            '(APIServer pid=1)   File "/opt/engine/x.py", line 3, in f',
            "(APIServer pid=1) AttributeError: 'NCCLCommunicator' object has no attribute 'comm'",
        ],
        # A request that failed while the server went on.
        [
            "(APIServer pid=1) ValueError: something about one request",
            "(APIServer pid=1) INFO 11-20 10:00:10 [loggers.py:248] Engine 000: Avg prompt throughput: 10.0 tokens/s",
        ],
    ],
    ids=["empty", "well", "warnings", "request", "ignored", "survived"],
)
def test_what_is_no_failure(lines: list[str]) -> None:
    assert reason_of(*lines) is None


def test_an_exception_without_a_rule_is_reported_whole() -> None:
    found = reason_of(
        "(EngineCore pid=9) ERROR 11-23 21:27:26 [core.py:1512] Traceback (most recent call last):",
        '(EngineCore pid=9) ERROR 11-23 21:27:26 [core.py:1512]   File "/opt/engine/x.py", line 3, in f',
        '(EngineCore pid=9) ERROR 11-23 21:27:26 [core.py:1512]     raise ValueError(f"{a} must fit {b}")',
        "(EngineCore pid=9) ERROR 11-23 21:27:26 [core.py:1512] ValueError: the flux is 3",
        "(EngineCore pid=9) ERROR 11-23 21:27:26 [core.py:1512] and must be 4; set it",
        "(APIServer pid=8) RuntimeError: Engine core initialization failed. See root cause above.",
    )
    assert found is not None and found.rank == Rank.UNNAMED
    assert found.sentence == "ValueError: the flux is 3 and must be 4; set it"


def test_all_fields_that_a_validator_refuses_are_reported() -> None:
    found = reason_of(
        "pydantic_core._pydantic_core.ValidationError: 2 validation errors for SchedulerConfig",
        "max_num_seqs",
        "  Input should be greater than or equal to 1 [type=greater_than_equal, input_value=0, input_type=int]",
        "    For further information visit https://errors.pydantic.dev/2.12/v/greater_than_equal",
        "policy",
        "  Input should be 'fcfs' or 'priority' [type=literal_error, input_value='x', input_type=str]",
    )
    assert found is not None
    assert found.sentence == (
        "ValidationError: max_num_seqs: Input should be greater than or equal to 1 "
        "policy: Input should be 'fcfs' or 'priority'"
    )


def test_an_assertion_without_words_is_known_by_its_condition() -> None:
    found = reason_of(
        "Traceback (most recent call last):",
        '  File "/opt/engine/vllm/worker.py", line 77, in check',
        "    assert value == world_size",
        "           ^^^^^^^^^^^^^^^^^^^",
        "AssertionError",
    )
    assert found is not None and found.sentence == "AssertionError: assert value == world_size (worker.py, line 77)"


def test_of_a_chain_the_last_on_purpose_is_reported() -> None:
    first = ["Traceback (most recent call last):", '  File "/x.py", line 1, in f', "KeyError: 'rope_type'"]
    during = ["", "During handling of the above exception, another exception occurred:", ""]
    deliberate = [
        "Traceback (most recent call last):",
        '  File "/x.py", line 9, in g',
        "ValueError: rope_parameters is odd",
    ]
    slip = [
        "Traceback (most recent call last):",
        '  File "/x.py", line 9, in g',
        "AttributeError: 'NoneType' object has no attribute 'close'",
    ]
    found = reason_of(*first, *during, *deliberate)
    assert found is not None and found.sentence == "ValueError: rope_parameters is odd"
    found = reason_of(*deliberate, *during, *slip)
    assert found is not None and found.sentence == "ValueError: rope_parameters is odd"


OUT_OF_MEMORY = (
    "(Worker_TP1 pid=3) ERROR 11-20 10:00:05 [multiproc_executor.py:953] torch.OutOfMemoryError: CUDA out of memory. "
    "Tried to allocate 1.00 GiB. GPU 1 has a total capacity of 23.64 GiB of which 83.88 MiB is free."
)
CLOSED = (
    "(Worker_TP0 pid=2) ERROR 11-20 10:00:04 [multiproc_executor.py:953] RuntimeError: "
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:41234"
)
KILLED = "(APIServer pid=1) RuntimeError: Engine core initialization failed. Failed core proc(s): {'EngineCore': -9}"
UNKNOWN = "(Worker_TP0 pid=2) ERROR 11-20 10:00:01 [multiproc_executor.py:953] ValueError: never seen before"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((CLOSED, OUT_OF_MEMORY), "accelerator_memory_full"),
        ((UNKNOWN, OUT_OF_MEMORY), "accelerator_memory_full"),
        ((CLOSED, UNKNOWN), ""),
        ((CLOSED, KILLED), "killed"),
        ((UNKNOWN, KILLED), ""),
        ((CLOSED, "Process tp2-0 terminated (exit code: -6)"), "gloo_peer_gone"),
    ],
)
def test_the_cause_comes_before_its_consequences(lines: tuple[str, ...], expected: str) -> None:
    found = reason_of(*lines)
    assert found is not None and found.name == expected


def test_a_quoted_error_is_reported_when_there_is_nothing_better() -> None:
    quoted = (
        "(EngineCore pid=9) ERROR 11-20 10:00:06 [core.py:1510] RuntimeError: Worker failed with error 'CUDA out of "
        "memory. Tried to allocate 1.00 GiB.', please check the stack trace above for the root cause"
    )
    found = reason_of(quoted)
    assert found is not None and found.name == "accelerator_memory_full" and found.rank == Rank.SYMPTOM
    found = reason_of(quoted, KILLED)
    assert found is not None and found.name == "killed"


@pytest.mark.parametrize(
    "prefix",
    [
        "(EngineCore_DP0 pid=17374) ERROR 11-20 10:00:00 [core.py:718] ",
        "\x1b[1;36m(EngineCore_DP0 pid=17374)\x1b[0;0m ERROR 11-20 10:00:00 [core.py:718] ",
        "(VllmWorker rank=0 pid=265) ERROR 11-20 10:00:00 [multiproc_executor.py:470] ",
        "(VllmWorkerProcess pid=2421) ERROR 11-20 10:00:00 multiproc_worker_utils.py:233] ",
        "(RayWorkerWrapper pid=206994, ip=192.0.2.25) ERROR 11-20 10:00:00 [worker_base.py:620] ",
        "2026-11-20 10:00:00.257 [Error] (Process) (EngineCore pid=2651) ERROR 11-20 10:00:00 [core.py:1136] ",
        "2026-11-20 10:00:00 ERROR 200507 [worker_base.py:148] ",
        "2026-11-20T09:00:00.123456Z stderr F (EngineCore pid=9) ERROR 11-20 10:00:00 [core.py:718] ",
        "vllm-1  | (EngineCore pid=9) ERROR 11-20 10:00:00 [core.py:718] ",
        "Nov 20 10:00:00 node0 cluster-vllm[77]: (EngineCore pid=9) ERROR 11-20 10:00:00 [core.py:718] ",
        "[rank0]: ",
        "",
    ],
)
def test_prefixes_of_loggers_are_left_out(prefix: str) -> None:
    raw = f"{prefix}ValueError: No available memory for the cache blocks."
    found = reason_of(raw)
    assert found is not None and found.name == "kv_cache_no_memory"
    if "ERROR" in prefix:
        lines = list(log_events.read_lines([raw]))
        assert lines[0].moment is not None and time.localtime(lines[0].moment)[3:6] == (10, 0, 0)


def test_a_time_without_a_year_is_of_the_last_twelve_months(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    now = calendar.timegm((2027, 1, 2, 0, 0, 0))
    lines = log_events.read_lines(
        ["ERROR 12-31 23:59:59 [core.py:1] x", "ERROR 01-01 00:00:01 [core.py:1] x", "plain"], now
    )
    moments = [line.moment for line in lines]
    monkeypatch.undo()
    time.tzset()
    expected = calendar.timegm((2026, 12, 31, 23, 59, 59)), calendar.timegm((2027, 1, 1, 0, 0, 1))
    assert moments == [expected[0], expected[1], expected[1]]


def test_a_log_of_many_ranks_is_read_at_once() -> None:
    """Each of 8 ranks writes a traceback of 60 frames, again and again, into one log: the first cause is found."""
    lines = [OUT_OF_MEMORY]
    for again in range(20):
        for rank in range(8):
            head = f"(Worker_TP{rank} pid={rank}) ERROR 11-20 10:00:0{again % 10} [multiproc_executor.py:953] "
            lines.append(head + "Traceback (most recent call last):")
            lines += [head + f'  File "/opt/engine/f{frame}.py", line {frame}, in f' for frame in range(60)]
            lines.append(head + "RuntimeError: NCCL error: remote process exited or there was a network error")
    found = reason_of(*lines)
    assert found is not None and found.name == "accelerator_memory_full" and "GPU 1" in found.sentence
