"""Measure by the engine's own bench, where torch has no device of the kind: llama.cpp's `llama-bench`.

What it gives is what the engine reaches, not what the device could: bytes read by a token's weights, and operations of
a prompt's products.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

# The processor's own backends: with these alone it was not the accelerator that was measured.
HOST_BACKENDS = frozenset({"CPU", "BLAS", "RPC"})
# Drivers that do a card's work on the processor; they call themselves cards.
HOST_DRIVERS = ("llvmpipe", "lavapipe", "SwiftShader", "Portable Computing Language")


class NotMeasuredError(Exception):
    """The bench did not measure the accelerator; the text says why."""


def run(argv: Sequence[str], environment: Mapping[str, str], seconds: float, host: bool = False) -> dict[str, Any]:
    """Return the values, the device and the notes of one run of the bench.

    host
        whether the node's processor is what is to be measured
    """
    try:
        finished = subprocess.run(
            list(argv), capture_output=True, text=True, timeout=seconds, check=False, env=dict(environment)
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotMeasuredError(f"{argv[0]}: {error}") from None
    if finished.returncode:
        lines = finished.stderr.strip().splitlines() or ["it said nothing"]
        raise NotMeasuredError(f"{argv[0]} ended with status {finished.returncode}: {lines[-1][:200]}")
    return read(finished.stdout, host)


def read(text: str, host: bool = False) -> dict[str, Any]:
    """Return what `llama-bench -o json` printed, as a probe's values.

    A token reads every weight of a dense model once, and a prompt's token takes two operations a parameter.
    """
    try:
        tests = json.loads(text)
        first = tests[0]
        backends = {part.strip() for part in str(first["backends"]).split(",")}
        if not host and (not backends - HOST_BACKENDS or not int(first["n_gpu_layers"])):
            raise NotMeasuredError(
                f"the bench ran on {', '.join(sorted(backends))} alone: this is the host's processor"
            )
        if not host and any(driver.lower() in str(first["gpu_info"]).lower() for driver in HOST_DRIVERS):
            raise NotMeasuredError(f"the bench ran on {first['gpu_info']}: this is the host's processor")
        values: dict[str, list[float]] = {}
        for test in tests:
            rates = [float(rate) for rate in test["samples_ts"]]
            if test["n_gen"] and not test["n_prompt"]:
                values["memory_read_bytes_per_second"] = [rate * float(test["model_size"]) for rate in rates]
            elif test["n_prompt"] and not test["n_gen"]:
                values["engine_prompt_flops_per_second"] = [rate * 2 * float(test["model_n_params"]) for rate in rates]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise NotMeasuredError(f"the bench printed what is no result of llama-bench: {error!r}") from None
    name = str(first["cpu_info"] if host else first["gpu_info"])
    device = {"kind": "host" if host else "engine", "name": name, "by": f"llama-bench {first.get('build_commit', '')}"}
    notes = {
        "measured_by": f"llama-bench with {first['model_type']}: what the engine reaches, not what the device could"
    }
    return {"values": values, "notes": notes, "device": device}
