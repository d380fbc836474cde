"""Measure a small mixture of experts on vLLM's CPU build beside what the arithmetic says of it.

Two checkpoints with random weights: a mixture, and a dense model with as many weights as a token of the mixture is
multiplied with. Each is made and served in turn; what a step reads should be the same, and so, about, its time. Needs
the engine's environment on this machine; nothing else, no Salt and no network.

    python bench/mixture_of_experts.py [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bottleneck.performance.formats import VALUE_BYTES
from bottleneck.performance.memory import rank_memory
from bottleneck.performance.model import WHOLE, flops_per_token, parameters, read_bytes, resident_bytes
from bottleneck.performance.model_config import ModelConfig, read_model_config
from bottleneck.performance.server_limits import Limits
from bottleneck.profile import find_profile, load_profile
from bottleneck.profile.types import EngineSpec
from bottleneck.telemetry.prometheus_text import MetricsText, delta

MAKER = Path(__file__).with_name("make_checkpoint.py")
CACHE_BYTES = 96 * 2**20
LENGTH, SEQUENCES, BATCHED = 1024, 4, 512
START_SECONDS = 600.0
PROMPT_TOKENS, OUTPUT_TOKENS, REQUESTS = 32, 48, 5
_COMMON = {
    "hidden_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 4096,
    "max_position_embeddings": LENGTH,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "bfloat16",
}
MIXTURE: Mapping[str, Any] = {
    **_COMMON,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "intermediate_size": 1536,
    "moe_intermediate_size": 768,
    "num_experts": 32,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
DENSE: Mapping[str, Any] = {
    **_COMMON,
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "intermediate_size": 2 * 768,
}


@dataclass(frozen=True)
class Measured:
    """One model as the arithmetic has it, and as it was found.

    Attributes
    ----------
    checkpoint_bytes
        Of the tensors in the files.
    counted_bytes
        Of the same weights by its config.json.
    cache_tokens, counted_cache_tokens
        Tokens that the KV cache holds, by the engine and by the arithmetic.
    flops, counted_flops
        Operations for one token without its context, by vLLM's own model (--enable-mfu-metrics) and by ours.
    read_bytes, counted_read_bytes
        Bytes that a step of one sequence reads, likewise.
    seconds
        Between two tokens of one sequence: the median over the requests.
    """

    name: str
    checkpoint_bytes: int
    counted_bytes: int
    cache_tokens: int
    counted_cache_tokens: int
    flops: float
    counted_flops: float
    read_bytes: float
    counted_read_bytes: float
    seconds: float


def engine() -> EngineSpec:
    """Return the engine of the embedded profile; SystemExit where it is not installed on this machine."""
    found = load_profile(find_profile("embedded")).engines["cpu"]
    if not (Path(found.directory()) / "bin" / "vllm").exists():
        raise SystemExit(f"{found.directory()}: no engine there; next: make demo, which installs it")
    return found


def measure(name: str, config: Mapping[str, Any], spec: EngineSpec, folder: Path) -> Measured:
    """Make a checkpoint, serve it, send it one request after another, and stop it."""
    checkpoint = folder / name
    python = Path(spec.directory()) / "bin" / "python"
    subprocess.run([python, MAKER, json.dumps(config), checkpoint], check=True, capture_output=True, timeout=600)
    model = read_model_config(json.loads((checkpoint / "config.json").read_text()))
    stored = parameters(model.shape).total * VALUE_BYTES
    with serving(spec, checkpoint, folder / f"{name}.log") as address:
        request(address, OUTPUT_TOKENS)  # compiles and fills caches
        gaps, before = [], MetricsText.parse(read(f"{address}/metrics"))
        for _ in range(REQUESTS):
            first, whole = request(address, 1), request(address, 1 + OUTPUT_TOKENS)
            gaps.append((whole - first) / OUTPUT_TOKENS)
        after = MetricsText.parse(read(f"{address}/metrics"))
        blocks = int(after.info("vllm:cache_config_info", "num_gpu_blocks") or 0)
        block = int(after.info("vllm:cache_config_info", "block_size") or 0)
    tokens, steps = _grown(before, after, "prompt_tokens_total"), REQUESTS * (2 + OUTPUT_TOKENS)
    tokens += _grown(before, after, "generation_tokens_total")
    return Measured(
        name,
        _tensor_bytes(checkpoint),
        stored,
        blocks * block,
        _cache_tokens(model, spec),
        _grown(before, after, "estimated_flops_per_gpu_total") / tokens,
        _flops(model),
        _grown(before, after, "estimated_read_bytes_per_gpu_total") / steps,
        _step_bytes(model),
        median(gaps),
    )


def _cache_tokens(model: ModelConfig, spec: EngineSpec) -> int:
    limits = Limits(LENGTH, SEQUENCES, BATCHED, CACHE_BYTES, None)
    return rank_memory(
        model.shape, model.weights, limits, WHOLE, 0, runtime_bytes=0, block_tokens=spec.kv_block_tokens
    ).kv_cache_tokens


def _flops(model: ModelConfig) -> float:
    """Return the operations of a mean token: the head is for those that are decoded, and the context comes on top."""
    prompts = 2 * PROMPT_TOKENS
    decoded = 2 + OUTPUT_TOKENS
    linear = prompts * flops_per_token(model.shape, output_head=False) + decoded * flops_per_token(model.shape)
    pairs = sum(layer.attention.pair_operations for layer in model.shape.layers)
    # Of the first token's prompt, half of the pairs; then one token after another over all that came before.
    context = 2 * PROMPT_TOKENS**2 / 2 + sum(PROMPT_TOKENS + position for position in range(OUTPUT_TOKENS))
    return (linear + pairs * context) / (prompts + decoded)


def _step_bytes(model: ModelConfig) -> float:
    """Return what a mean step reads of the weights: two prompts, and the tokens that follow one of them."""
    prompt = read_bytes(model.shape, model.weights, tokens=PROMPT_TOKENS)
    return (2 * prompt + OUTPUT_TOKENS * read_bytes(model.shape, model.weights)) / (2 + OUTPUT_TOKENS)


def _grown(before: MetricsText, after: MetricsText, name: str) -> float:
    found = delta(before, after, f"vllm:{name}")
    return found.value if found else float("nan")


def _tensor_bytes(checkpoint: Path) -> int:
    """Return the bytes of all tensors, by the files' own headers (eight bytes of length, then JSON)."""
    total = 0
    for file in checkpoint.glob("*.safetensors"):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        total += sum(
            end - start
            for name, each in header.items()
            if name != "__metadata__"
            for start, end in [each["data_offsets"]]
        )
    return total


@contextmanager
def serving(spec: EngineSpec, checkpoint: Path, log: Path) -> Iterator[str]:
    """Serve a checkpoint on a free port of this machine; yield its address, and end it with all its processes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    base = Path(spec.directory())
    limits = ["--max-model-len", LENGTH, "--max-num-seqs", SEQUENCES, "--max-num-batched-tokens", BATCHED]
    words = [
        base / "bin" / "vllm",
        "serve",
        checkpoint,
        "--served-model-name",
        "m",
        "--host",
        "127.0.0.1",
        "--port",
        port,
    ]
    words += [*limits, "--kv-cache-memory-bytes", CACHE_BYTES, "--gpu-memory-utilization", "0.2", "--enforce-eager"]
    words += ["--enable-mfu-metrics", "--no-enable-prefix-caching"]
    environment = {
        **os.environ,
        **spec.environment,
        "LD_PRELOAD": ":".join(str(base / each) for each in spec.preload),
        "VLLM_HOST_IP": "127.0.0.1",
        "PATH": f"{base / 'bin'}:{os.environ['PATH']}",
    }
    environment.pop("PYTHONPATH", None)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in words], env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _await(process, f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        if _group(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def _group(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


def _await(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            read(f"{address}/health")
            return
        except (OSError, urllib.error.URLError):
            time.sleep(1)
    raise SystemExit(f"{log}: the server did not come up:\n{log.read_text()[-2000:]}")


def read(url: str) -> str:
    """Return what an address answers."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=60) as answer:
        return str(answer.read().decode())


def request(address: str, tokens: int) -> float:
    """Complete a prompt of fixed length by so many tokens; return the seconds that it took."""
    ids = [100 + (position * 37) % 3000 for position in range(PROMPT_TOKENS)]
    body = {"model": "m", "prompt": ids, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    asked = urllib.request.Request(  # noqa: S310 - this machine's own server
        f"{address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    began = time.monotonic()
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=300) as answer:
        found = json.loads(answer.read())
    took = time.monotonic() - began
    assert found["usage"] == {**found["usage"], "prompt_tokens": PROMPT_TOKENS, "completion_tokens": tokens}
    return took


def both() -> list[Measured]:
    """Measure the mixture and its dense twin."""
    spec = engine()
    with tempfile.TemporaryDirectory(prefix="mixture-") as folder:
        return [measure(name, config, spec, Path(folder)) for name, config in (("mixture", MIXTURE), ("dense", DENSE))]


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    found = both()
    if parser.parse_args().json:
        print(json.dumps([asdict(each) for each in found], indent=1))
        return
    for each in found:
        print(f"{each.name}: a token in {1000 * each.seconds:.1f} ms")
        for what, seen, counted, scale, unit in (
            ("weights", each.checkpoint_bytes, each.counted_bytes, 1e6, "MB"),
            ("tokens of the cache", each.cache_tokens, each.counted_cache_tokens, 1, ""),
            ("operations a token", each.flops, each.counted_flops, 1e6, "M"),
            ("bytes a step reads", each.read_bytes, each.counted_read_bytes, 1e6, "MB"),
        ):
            print(f"  {what}: {seen / scale:.1f} {unit} measured, {counted / scale:.1f} {unit} counted")
    mixture, dense = found
    models = [read_model_config(config) for config in (MIXTURE, DENSE)]
    reads = [read_bytes(model.shape, model.weights) for model in models]
    print(f"time of the mixture over its dense twin: {mixture.seconds / dense.seconds:.2f}")
    print(f"by what a step of one token reads: {reads[0] / reads[1]:.2f}")
    whole = resident_bytes(models[0].shape, models[0].weights)
    print(f"by all that the mixture holds: {whole / reads[1]:.1f}")


if __name__ == "__main__":
    main()
