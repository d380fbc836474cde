"""Measure prefill and decode step times of a model shape on one GPU, and the GPU's ceilings.

The engine runs offline (vLLM's `LLM`) with random weights, so nothing is downloaded. For every point, a batch of
random prompts: the time to the first token of all of them (`prefill_s`), the time to the last of `--output-tokens`
(`total_s`), and their difference by step (`decode_step_s`). The file is rewritten after every point, so a sweep that
is cut short is still a sweep. `cluster whatif --evaluate` reads it.

    python bench/sweep_gpu.py ceilings ceilings.json
    python bench/sweep_gpu.py sweep sweep_w4a16.json --quantization w4a16
    python bench/sweep_gpu.py sweep sweep_7b.json --shape mistral-7b --grid '1,3,12 x 512; 1,5 x 2000'
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, int]] = {
    # mistralai/Mistral-Small-Instruct-2409, config.json
    "mistral-small-2409": {
        "vocab_size": 32768,
        "hidden_size": 6144,
        "intermediate_size": 16384,
        "num_hidden_layers": 56,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    # mistralai/Mistral-7B-Instruct-v0.3, config.json
    "mistral-7b": {
        "vocab_size": 32768,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    # mistralai/Mistral-Nemo-Instruct-2407, config.json
    "mistral-nemo": {
        "vocab_size": 131072,
        "hidden_size": 5120,
        "intermediate_size": 14336,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    # mistralai/Mistral-Small-24B-Instruct-2501, config.json
    "mistral-small-2501": {
        "vocab_size": 131072,
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}
GRID = "1,2,4,8,16,32,64,128,256 x 128; 1,2,4,8,16,32,64,128 x 1024; 1,2,4,8,16,32 x 4096"
BATCHED_TOKENS = 8192
LONGEST = 32768


def quantization_config(name: str) -> dict[str, Any] | None:
    """Return the checkpoint's `quantization_config` in the compressed-tensors form; None for bfloat16.

    The form matters: with the gptq form and random weights this vLLM loads bfloat16 instead.
    """
    weights: dict[str, Any]
    activations: dict[str, Any] | None = None
    if name == "bf16":
        return None
    if name == "w4a16":
        form = "pack-quantized"
        weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
    else:
        form = "float-quantized"
        weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
        activations = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def model_config(shape: str, quantization: str) -> dict[str, Any]:
    """Return the model's config.json."""
    config: dict[str, Any] = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        **SHAPES[shape],
        "max_position_embeddings": LONGEST,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "hidden_act": "silu",
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    quantized = quantization_config(quantization)
    return config | {"quantization_config": quantized} if quantized else config


def read_grid(text: str) -> list[tuple[int, int]]:
    """Return (batch, prompt tokens) of a grid such as `1,2,4 x 128; 1,2 x 4096`."""
    points = []
    for row in text.split(";"):
        found = re.fullmatch(r"\s*([\d,\s]+?)\s*x\s*([\d,\s]+?)\s*", row)
        if not found:
            raise SystemExit(f"--grid: {row.strip()!r}; expected batches x prompt lengths such as 1,2,4 x 128,1024")
        batches, prompts = ([int(word) for word in group.split(",")] for group in found.groups())
        points += [(batch, prompt) for prompt in prompts for batch in batches]
    return points


def loaded_gibibytes(worker: Any) -> float:
    """Return what the weights of a worker take; runs inside the engine."""
    return float(worker.model_runner.model_memory_usage) / 2**30


def sweep(arguments: argparse.Namespace) -> None:
    """Measure every point of the grid."""
    # The question about loaded weights travels to the engine's process as a function.
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    import torch
    import vllm

    config = model_config(arguments.shape, arguments.quantization)
    points = read_grid(arguments.grid)
    longest = max(prompt for _, prompt in points) + arguments.output_tokens
    with tempfile.TemporaryDirectory(prefix="sweep-model-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        engine = vllm.LLM(
            model=folder,
            skip_tokenizer_init=True,
            load_format="dummy",
            max_model_len=longest + 16,
            max_num_seqs=max(batch for batch, _ in points),
            max_num_batched_tokens=BATCHED_TOKENS,
            enable_prefix_caching=False,
            gpu_memory_utilization=0.9,
            seed=0,
        )
    try:
        loaded = f"{engine.collective_rpc(loaded_gibibytes)[0]:.2f} GiB loaded"
    except Exception as error:  # another version keeps it elsewhere; the sweep does not need it
        loaded = f"loaded size unknown: {type(error).__name__}"
    document: dict[str, Any] = {
        "engine": f"vllm {vllm.__version__}, torch {torch.__version__}, V1 engine, CUDA graphs on, prefix caching off, "
        f"max_num_batched_tokens {BATCHED_TOKENS}, dummy weights, greedy, ignore_eos",
        "hardware": f"1x {torch.cuda.get_device_name(0)}",
        "model": f"{arguments.shape} shape",
        "weights": f"{'bfloat16' if arguments.quantization == 'bf16' else arguments.quantization} ({loaded})",
        "config": config,
        "method": f"{arguments.statistic} of {arguments.repeats} runs; prefill_s = generate(batch, prompt, "
        f"max_tokens=1) wall seconds; total_s = max_tokens={arguments.output_tokens}; "
        f"decode_step_s = (total_s - prefill_s)/{arguments.output_tokens - 1}",
        "kv_cache_dtype": "bfloat16",
        "points": [],
    }
    summary: Callable[[list[float]], float] = statistics.median if arguments.statistic == "median" else min
    timed = _timer(engine, vllm, config["vocab_size"])
    timed(1, 128, 1), timed(8, 1024, arguments.output_tokens)
    started = time.monotonic()
    for batch, prompt in points:
        if time.monotonic() - started > arguments.seconds:
            print(f"stopped after {arguments.seconds} s", file=sys.stderr, flush=True)
            break
        timed(batch, prompt, 1)
        prefill = summary([timed(batch, prompt, 1) for _ in range(arguments.repeats)])
        total = summary([timed(batch, prompt, arguments.output_tokens) for _ in range(arguments.repeats)])
        point = {
            "batch": batch,
            "prompt": prompt,
            "prefill_s": prefill,
            "total_s": total,
            "decode_step_s": (total - prefill) / (arguments.output_tokens - 1),
        }
        document["points"].append(point)
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")
        print(json.dumps(point), file=sys.stderr, flush=True)


def _timer(engine: Any, vllm: Any, vocabulary: int) -> Callable[[int, int, int], float]:
    import numpy as np

    generator = np.random.default_rng(0)

    def timed(batch: int, prompt: int, tokens: int) -> float:
        prompts = [
            vllm.TokensPrompt(prompt_token_ids=row.tolist())
            for row in generator.integers(3, vocabulary, size=(batch, prompt))
        ]
        settings = vllm.SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        started = time.perf_counter()
        engine.generate(prompts, settings, use_tqdm=False)
        return time.perf_counter() - started

    return timed


def ceilings(arguments: argparse.Namespace) -> None:
    """Measure what the GPU can do, by the code of the nodes' probe: the median of 20 of each."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "salt" / "probe" / "files"))
    import device_measures as measures
    import torch

    device = measures.Device(torch, arguments.device)
    size, repeats, middle = 4 * 10**9, 20, statistics.median
    document: dict[str, Any] = {"name": device.name, "torch": torch.__version__}
    document["copy_Bps"] = middle(measures.memory_copy(device, size, repeats))
    document["read_Bps"] = middle(measures.memory_read(device, size, repeats))
    for width in (1024, 2048, 4096, 8192):
        document[f"gemm_bf16_{width}_flops"] = middle(measures.products(device, "bf16", width, repeats))
    there, back = measures.host_copies(device, 2**30, repeats)
    document["h2d_Bps"], document["d2h_Bps"] = middle(there), middle(back)
    document["launch_s"] = middle(measures.launches(device, repeats))
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document), file=sys.stderr)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    parts = verbs.add_parser("ceilings", help="what the GPU can do")
    parts.add_argument("output", type=Path)
    parts.add_argument("--device", default="cuda", help="torch's name of it: cuda (AMD as well), xpu")
    parts.set_defaults(run=ceilings)
    points = verbs.add_parser("sweep", help="prefill and decode step times over batch and prompt length")
    points.add_argument("output", type=Path)
    points.add_argument("--quantization", choices=("bf16", "fp8", "w4a16"), default="bf16")
    points.add_argument("--shape", choices=tuple(SHAPES), default="mistral-small-2409")
    points.add_argument("--grid", default=GRID)
    points.add_argument("--repeats", type=int, default=3)
    points.add_argument("--statistic", choices=("median", "best"), default="median")
    points.add_argument("--output-tokens", type=int, default=49)
    points.add_argument("--seconds", type=float, default=480.0, help="begin no further point after this long")
    points.set_defaults(run=sweep)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
