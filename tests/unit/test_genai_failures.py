"""Ends of OpenVINO GenAI's server, each rule by the log of a start that failed so (2026.4.1, on the CPU)."""

from __future__ import annotations

import failure_reasons
import genai_failures
import pytest

AT = "2026-11-27 16:27:12,631 ERROR "
ENDED = AT + "the engine ended: "
LOGS = [
    (f"{AT}--max-model-len 9999: the model was made for 2048 tokens; expected no more", "argument_refused", "2048"),
    (
        "genai_server: error: argument --max-model-len: x; expected a whole number above 0",
        "argument_refused",
        "--max-model-len",
    ),
    (
        f"{AT}the KV cache would have 0 blocks of 32 tokens; expected 2 or more: raise --kv-cache-bytes",
        "cache_too_small",
        "0 blocks of 32 tokens",
    ),
    (f"{AT}/models/x has no openvino_model.xml; expected OpenVINO's form", "model_unreadable", "openvino_model.xml"),
    (f"{AT}config.json: vocab_size is None; expected a whole number above 0", "model_unreadable", "vocab_size"),
    (f"{ENDED}RuntimeError: Incorrect weights in bin file!", "model_unreadable", "Incorrect weights"),
    (f"{ENDED}RuntimeError: Start-end tags mismatch at offset 999", "model_unreadable", "tags mismatch"),
    (
        f"{AT}the tokenizer of /models/x cannot be loaded: Empty weights data in bin file or bin file cannot be found!",
        "model_unreadable",
        "the tokenizer",
    ),
    (
        f'{ENDED}RuntimeError: Cannot load library "/opt/lib/libopenvino_intel_gpu_plugin.so": libOpenCL.so.1: cannot'
        " open shared object file: No such file or directory",
        "plugin_unloadable",
        "libOpenCL.so.1 is not on the node",
    ),
    (f'{ENDED}RuntimeError: Device with "GPU.3" name is not registered', "device_missing", "GPU.3"),
    ("/opt/engine/bin/python: No module named genai_server", "program_missing", "genai_server is not on the node"),
    (f"{ENDED}RuntimeError: std::bad_alloc", "memory_short", "does not fit"),
    (f"{ENDED}RuntimeError: CL_OUT_OF_RESOURCES", "memory_short", "does not fit"),
    (f"{ENDED}the engine's process ended", "engine_ended", "the engine's process ended"),
    (
        "ERROR:    [Errno 98] error while attempting to bind on address ('10.77.0.10', 8000): address already in use",
        "port_taken",
        "8000",
    ),
]


@pytest.mark.parametrize(("log", "name", "words"), LOGS, ids=lambda value: str(value)[:40])
def test_what_a_log_means(log: str, name: str, words: str) -> None:
    found = failure_reasons.reason(
        ["2026-11-27 16:27:11,000 INFO Loading the model /models/x on CPU", *log.splitlines()],
        genai_failures.ENGINE_RULES,
    )
    assert found is not None and words in found.sentence
    assert found.name == name


def test_every_own_rule_has_a_log() -> None:
    assert {rule.name for rule in (*genai_failures.OWN, genai_failures.LAST)} <= {name for _, name, _ in LOGS}
