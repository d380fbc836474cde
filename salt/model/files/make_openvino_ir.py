"""Make OpenVINO's form of a checkpoint: its graph, weights in 4 bit, and the tokenizer's two graphs.

Runs under an environment with optimum-intel, nncf, openvino-tokenizers and torch; no network. optimum-cli does the
conversion; it reads no compressed weights, so those of a checkpoint in compressed-tensors' ``pack-quantized`` form are
first written out in bfloat16. The folder appears whole or not at all: it is made beside its final place, checked, and
renamed. What it was made from is in ``conversion.json`` in it.

How far it is goes to ``OUT.progress`` as JSON (``stage``, ``share``, ``seconds``), for who waits.

Usage::

    make_openvino_ir.py --checkpoint DIR --weights int4 --group-size 128 --out DIR
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import node_files

# What the engine opens; a conversion without one of them is none.
NEEDED = (
    "config.json",
    "openvino_model.xml",
    "openvino_model.bin",
    "openvino_tokenizer.xml",
    "openvino_tokenizer.bin",
    "openvino_detokenizer.xml",
    "openvino_detokenizer.bin",
)
PACKAGES = ("optimum-intel", "nncf", "openvino", "openvino-tokenizers", "torch", "transformers")
MADE = "made"
FORMATS = ("int4", "int8", "fp16")
# By how much of its time each stage begins, measured on the embedded profile's model.
STAGES = {"unpacking": 0.0, "exporting": 0.1, "checking": 0.98}
PACKED, SCALE, SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"
SHARD_BYTES = 2 * 1024**3
# Packages that would send usage away, or ask a hub.
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}


class Progress:
    """Progress of the conversion, in a file beside its output."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._began = time.monotonic()

    def stage(self, name: str, within: float = 0.0, end: float | None = None) -> None:
        """Note a stage, and how much of it is done (0 to 1)."""
        begin = STAGES[name]
        share = begin + within * ((end if end is not None else begin) - begin)
        document = {"stage": name, "share": round(share, 3), "seconds": round(time.monotonic() - self._began, 1)}
        node_files.write_json(self.path, document)
        print(f"make_openvino_ir: {name} ({share:.0%})", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Take the file away."""
        node_files.remove(self.path)


def checkpoint_config(folder: str) -> dict[str, Any]:
    """Return a checkpoint's configuration, or end with why it has none."""
    path = os.path.join(folder, "config.json")
    content = node_files.read_json(path)
    if not isinstance(content, dict):
        raise SystemExit(f"make_openvino_ir: {path} is missing or no JSON object; expected a checkpoint's folder")
    return content


def packed_form(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return (bits, group size) of packed weights; None for a checkpoint whose weights are plain numbers.

    Ends with a sentence for a form that is neither.
    """
    quantization = config.get("quantization_config")
    if not quantization:
        return None
    method, form = quantization.get("quant_method"), quantization.get("format")
    groups = quantization.get("config_groups") or {}
    schemes = [group.get("weights") or {} for group in groups.values()]
    expected = "expected compressed-tensors, pack-quantized, one group of symmetric int4 weights; or no quantization"
    if method != "compressed-tensors" or form != "pack-quantized" or len(schemes) != 1:
        raise SystemExit(f"make_openvino_ir: the checkpoint is {method}, {form}, {len(schemes)} groups: {expected}")
    scheme = schemes[0]
    bits, symmetric, group = scheme.get("num_bits"), scheme.get("symmetric"), scheme.get("group_size")
    if bits not in (4, 8) or not symmetric or not isinstance(group, int) or scheme.get("type") != "int":
        raise SystemExit(f"make_openvino_ir: the checkpoint's weights are {json.dumps(scheme)}: {expected}")
    return bits, group


def unpacked(packed: Any, scale: Any, columns: int, bits: int) -> Any:
    """Return weights in bfloat16, shape (rows, columns).

    packed
        int32, (rows, columns * bits / 32): the lowest bits of a word are its first value, each with 2^(bits - 1) added
    scale
        bfloat16, (rows, columns / group)
    """
    import torch

    per_word = 32 // bits
    shifts = torch.arange(per_word, dtype=torch.int32) * bits
    values = (packed.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    rows = packed.shape[0]
    whole = values.reshape(rows, -1)[:, :columns].to(torch.float32) - (1 << (bits - 1))
    grouped = whole.reshape(rows, scale.shape[1], -1) * scale.to(torch.float32).unsqueeze(-1)
    return grouped.reshape(rows, columns).to(torch.bfloat16)


def weight_files(folder: str) -> list[str]:
    names = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))
    if not names:
        raise SystemExit(f"make_openvino_ir: {folder} has no .safetensors file; expected a checkpoint with its weights")
    return names


def plain_tensors(folder: str, bits: int, progress: Progress) -> Iterator[tuple[str, Any]]:
    """Yield (name, tensor) of a packed checkpoint with its weights as plain numbers, one at a time."""
    from safetensors import safe_open

    with contextlib.ExitStack() as opened:
        paths = [os.path.join(folder, name) for name in weight_files(folder)]
        files = [opened.enter_context(safe_open(path, framework="pt")) for path in paths]
        # A layer's scales may be in another file than its weights.
        place = {key: file for file in files for key in file.keys()}  # noqa: SIM118 (it is no mapping)
        for index, (key, file) in enumerate(place.items()):
            if key.endswith(PACKED):
                stem = key.removesuffix(PACKED)
                scale, shape = (place[stem + part].get_tensor(stem + part) for part in (SCALE, SHAPE))
                yield stem + ".weight", unpacked(file.get_tensor(key), scale, int(shape[1]), bits)
            elif not key.endswith((SCALE, SHAPE)):
                yield key, file.get_tensor(key)
            if index % 64 == 0:
                progress.stage("unpacking", index / len(place), STAGES["exporting"])


def write_plain(folder: str, out: str, config: Mapping[str, Any], bits: int, progress: Progress) -> None:
    """Write a packed checkpoint with plain weights, in files of about 2 GiB."""
    from safetensors.torch import save_file

    os.makedirs(out)
    for name in os.listdir(folder):
        if name.endswith(".json") and name not in ("config.json", "model.safetensors.index.json"):
            shutil.copy(os.path.join(folder, name), out)
    with open(os.path.join(out, "config.json"), "w", encoding="utf-8") as file:
        json.dump({key: value for key, value in config.items() if key != "quantization_config"}, file)
    shard: dict[str, Any] = {}
    place: dict[str, str] = {}
    size = 0
    number = 1

    def close() -> None:
        nonlocal shard, size, number
        name = f"model-{number:05d}.safetensors"
        save_file(shard, os.path.join(out, name), metadata={"format": "pt"})
        place.update(dict.fromkeys(shard, name))
        shard, size, number = {}, 0, number + 1

    for key, tensor in plain_tensors(folder, bits, progress):
        shard[key] = tensor.contiguous()
        size += tensor.numel() * tensor.element_size()
        if size >= SHARD_BYTES:
            close()
    if shard:
        close()
    with open(os.path.join(out, "model.safetensors.index.json"), "w", encoding="utf-8") as file:
        json.dump({"metadata": {}, "weight_map": place}, file)


def export(checkpoint: str, out: str, weights: str, group_size: int) -> None:
    """Run optimum-cli; end with its last line when it fails."""
    options = ["--task", "text-generation-with-past", "--weight-format", weights]
    if weights == "int4":
        options += ["--group-size", str(group_size), "--sym", "--ratio", "1.0"]
    program = os.path.join(os.path.dirname(sys.executable), "optimum-cli")
    finished = subprocess.run(
        [program, "export", "openvino", "--model", checkpoint, *options, out],
        env={**os.environ, **QUIET},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if finished.returncode:
        lines = [line for line in finished.stderr.splitlines() if line.strip()]
        last = lines[-1] if lines else "it reported nothing"
        raise SystemExit(f"make_openvino_ir: optimum-cli ended with status {finished.returncode}: {last}")


def check(folder: str) -> None:
    """End with what is missing of a conversion."""
    missing = [name for name in NEEDED if not os.path.exists(os.path.join(folder, name))]
    if missing:
        raise SystemExit(f"make_openvino_ir: the conversion has no {', '.join(missing)}")


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def convert(options: argparse.Namespace, partial: str, progress: Progress) -> None:
    """Make the whole conversion in the folder ``partial``, as ``MADE`` in it."""
    config = checkpoint_config(options.checkpoint)
    form = packed_form(config)
    source, plain = options.checkpoint, os.path.join(partial, "plain")
    if form:
        progress.stage("unpacking")
        write_plain(options.checkpoint, plain, config, form[0], progress)
        source = plain
    progress.stage("exporting")
    made = os.path.join(partial, MADE)
    export(source, made, options.weights, options.group_size)
    progress.stage("checking")
    check(made)
    document = {
        "source": os.path.basename(os.path.normpath(options.checkpoint)),
        "weights": options.weights,
        "group_size": options.group_size if options.weights == "int4" else None,
        "versions": versions(),
    }
    with open(os.path.join(made, "conversion.json"), "w", encoding="utf-8") as file:
        json.dump(document, file, indent=1, sort_keys=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="folder of the checkpoint")
    parser.add_argument("--weights", choices=FORMATS, default="int4", help="form of the weights")
    parser.add_argument("--group-size", type=int, default=128, help="weights that share one scale, in int4")
    parser.add_argument("--out", required=True, help="folder to make; may be there, empty")
    options = parser.parse_args(arguments)
    if os.path.exists(os.path.join(options.out, NEEDED[1])):
        print(f"make_openvino_ir: {options.out} is there, nothing to do")
        return 0
    if os.path.exists(options.out) and os.listdir(options.out):
        raise SystemExit(f"make_openvino_ir: {options.out} has other files in it; expected an empty or a new folder")
    checkpoint_config(options.checkpoint)
    progress = Progress(f"{options.out}.progress")
    try:
        with node_files.new_folder(options.out, MADE) as partial:
            convert(options, partial, progress)
    finally:
        progress.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
