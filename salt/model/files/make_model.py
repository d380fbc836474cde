"""Make a Mistral-architecture checkpoint with random weights, in 4, 8 or 16 bit.

Runs under the engine's Python (torch, safetensors, tokenizers); no network.
In 16 bit the linear layers are bfloat16. Otherwise the checkpoint is in compressed-tensors'
``pack-quantized`` form: for every linear layer ``weight_packed`` (int32, shape
(out, in * bits / 32), as many values a word as fit), ``weight_scale`` (bfloat16, shape
(out, in / group size)) and ``weight_shape``.

The same arguments give the same bytes. The folder appears whole or not at all: it
is written beside its final place and renamed. What is larger than 4 GiB is in several
files, with an index, as on the hub.

Usage::

    make_model.py --shape '{"layers": 8, "hidden_size": 1024, ...}' --seed 1 --out DIR
        [--quantization '{"bits": 4, "group_size": 128, "symmetric": true}'] [--no-weights]

Without weights it is what an engine needs that makes them up (vLLM: ``--load-format dummy``).
"""

import argparse
import json
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

import node_files

SHAPE_KEYS = (
    "layers",
    "hidden_size",
    "intermediate_size",
    "attention_heads",
    "key_value_heads",
    "head_dim",
    "vocabulary_size",
    "context_length",
)
DEFAULT_QUANTIZATION = {"bits": 4, "group_size": 128, "symmetric": True}
# Bits that are packed, and the standard deviation of as wide a whole number that is drawn evenly.
PACKED = {4: 4.6, 8: 73.9}
WORD_BITS = 32
SPECIAL_TOKENS = ["<unk>", "<s>", "</s>"]
# As large models on the hub are cut.
SHARD_BYTES = 4 << 30


def corpus(seed: int, sentences: int) -> Iterator[str]:
    """Yield sentences of made-up words; enough variety to fill the vocabulary."""
    chooser = random.Random(seed)
    onsets = ["b", "br", "c", "d", "dr", "f", "g", "gr", "h", "l", "m", "n", "p", "r", "s", "st", "t", "v", "z"]
    vowels = ["a", "e", "i", "o", "u", "ai", "ea", "ou"]
    codas = ["", "", "n", "r", "s", "t", "l", "nd", "st"]

    def syllable() -> str:
        return chooser.choice(onsets) + chooser.choice(vowels) + chooser.choice(codas)

    words = ["".join(syllable() for _ in range(chooser.randint(1, 4))) for _ in range(20000)]
    for _ in range(sentences):
        count = chooser.randint(5, 14)
        yield " ".join(chooser.choice(words) for _ in range(count)).capitalize() + ".\n"


def write_tokenizer(folder: str, vocabulary_size: int, context_length: int, seed: int) -> None:
    """Train a byte-level BPE tokenizer of exactly ``vocabulary_size`` entries."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))  # noqa: S106 (a piece of text, no secret)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(seed, vocabulary_size * 4), trainer)
    if tokenizer.get_vocab_size() != vocabulary_size:
        raise SystemExit(
            "make_model: the tokenizer came out with "
            f"{tokenizer.get_vocab_size()} entries, expected {vocabulary_size}: "
            "choose a smaller vocabulary_size"
        )
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    write_json(
        folder,
        "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "model_max_length": context_length,
            "clean_up_tokenization_spaces": False,
        },
    )


def write_json(folder: str, name: str, content: Mapping[str, Any]) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, sort_keys=True)


def write_config(folder: str, shape: Mapping[str, int], quantization: Mapping[str, Any]) -> None:
    packed = {"quantization_config": packed_config(quantization)} if quantization["bits"] in PACKED else {}
    write_json(
        folder,
        "config.json",
        {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "hidden_size": shape["hidden_size"],
            "intermediate_size": shape["intermediate_size"],
            "num_hidden_layers": shape["layers"],
            "num_attention_heads": shape["attention_heads"],
            "num_key_value_heads": shape["key_value_heads"],
            "head_dim": shape["head_dim"],
            "vocab_size": shape["vocabulary_size"],
            "max_position_embeddings": shape["context_length"],
            "sliding_window": None,
            "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dtype": "bfloat16",
            "torch_dtype": "bfloat16",
            **packed,
        },
    )


def packed_config(quantization: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "input_activations": None,
                "output_activations": None,
                "weights": {
                    "num_bits": quantization["bits"],
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": quantization["group_size"],
                },
            }
        },
    }


def linear_layers(shape: Mapping[str, int]) -> Iterator[tuple[str, int, int]]:
    """Yield (name, out features, in features) of every linear layer, but for the output head."""
    hidden, inner, head = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    queries, keys = shape["attention_heads"] * head, shape["key_value_heads"] * head
    for layer in range(shape["layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "self_attn.q_proj", queries, hidden
        yield prefix + "self_attn.k_proj", keys, hidden
        yield prefix + "self_attn.v_proj", keys, hidden
        yield prefix + "self_attn.o_proj", hidden, queries
        yield prefix + "mlp.gate_proj", inner, hidden
        yield prefix + "mlp.up_proj", inner, hidden
        yield prefix + "mlp.down_proj", hidden, inner


def weights(
    shape: Mapping[str, int], quantization: Mapping[str, Any], seed: int
) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Yield name and tensor of everything that is learnt, drawn one after the other."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    hidden, vocabulary = shape["hidden_size"], shape["vocabulary_size"]
    bits, group_size = quantization["bits"], quantization["group_size"]
    for name, rows, columns in linear_layers(shape):
        # Weights bring the product of a unit vector back to unit size, as training would.
        if bits not in PACKED:
            drawn = torch.randn((rows, columns), generator=generator)
            yield name + ".weight", (drawn / columns**0.5).to(torch.bfloat16)
            continue
        scale = 1.0 / (PACKED[bits] * columns**0.5)
        packed = torch.randint(
            -(2**31), 2**31, (rows, columns * bits // WORD_BITS), generator=generator, dtype=torch.int64
        )
        yield name + ".weight_packed", packed.to(torch.int32)
        jitter = 0.8 + 0.4 * torch.rand((rows, columns // group_size), generator=generator)
        yield name + ".weight_scale", (scale * jitter).to(torch.bfloat16)
        yield name + ".weight_shape", torch.tensor([rows, columns], dtype=torch.int64)
    for layer in range(shape["layers"]):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{norm}.weight", torch.ones(hidden, dtype=torch.bfloat16)
    yield "model.norm.weight", torch.ones(hidden, dtype=torch.bfloat16)
    yield "model.embed_tokens.weight", torch.randn((vocabulary, hidden), generator=generator).to(torch.bfloat16)
    # Wide logits keep greedy decoding away from ties.
    head = torch.randn((vocabulary, hidden), generator=generator) * (4.0 / hidden**0.5)
    yield "lm_head.weight", head.to(torch.bfloat16)


def write_weights(folder: str, shape: Mapping[str, int], quantization: Mapping[str, Any], seed: int) -> None:
    """Write the weights, in files of about SHARD_BYTES: no more than one of them is in memory."""
    from safetensors.torch import save_file

    shard: dict[str, Any] = {}
    files: list[list[str]] = []
    size = total = 0

    def write() -> None:
        save_file(shard, os.path.join(folder, f"part-{len(files)}"), metadata={"format": "pt"})
        files.append(sorted(shard))
        shard.clear()

    for name, tensor in weights(shape, quantization, seed):
        tensor_bytes = tensor.numel() * tensor.element_size()
        # A layer's scales stay with its weights.
        if shard and size + tensor_bytes > SHARD_BYTES and not name.endswith((".weight_scale", ".weight_shape")):
            write()
            size = 0
        shard[name] = tensor
        size += tensor_bytes
        total += tensor_bytes
    write()
    names = ["model.safetensors"]
    if len(files) > 1:
        names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
        placed = {tensor: name for name, tensors in zip(names, files, strict=True) for tensor in tensors}
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        write_json(folder, "model.safetensors.index.json", index)
    for number, name in enumerate(names):
        # The library makes them for their owner alone; engines are a user of their own.
        os.chmod(os.path.join(folder, f"part-{number}"), 0o644)
        os.rename(os.path.join(folder, f"part-{number}"), os.path.join(folder, name))


def checked_shape(text: str) -> dict[str, int]:
    """Return the shape as a dictionary, or end with what is wrong with it."""
    try:
        shape: dict[str, int] = json.loads(text)
    except ValueError as error:
        raise SystemExit(f"make_model: --shape is not JSON: {error}") from error
    missing = [key for key in SHAPE_KEYS if not isinstance(shape.get(key), int)]
    if missing:
        raise SystemExit(f"make_model: --shape lacks a whole number for {', '.join(missing)}")
    return shape


def checked_quantization(text: str, shape: Mapping[str, int]) -> dict[str, Any]:
    """Return how weights are to be stored, or end with why such a checkpoint is not made."""
    try:
        quantization = {**DEFAULT_QUANTIZATION, **json.loads(text)}
    except (TypeError, ValueError) as error:
        raise SystemExit(f"make_model: --quantization is no JSON object: {error}") from error
    bits, group_size = quantization["bits"], quantization["group_size"]
    if bits not in (*PACKED, 16):
        raise SystemExit(f"make_model: quantization.bits is {bits}, expected 4, 8 or 16")
    if bits in PACKED:
        if not quantization["symmetric"]:
            raise SystemExit("make_model: quantization.symmetric is false, expected true: no zero points are made")
        for name, _, columns in linear_layers(shape):
            if columns % group_size or columns * bits % WORD_BITS:
                expected = f"a multiple of quantization.group_size, {group_size}"
                raise SystemExit(f"make_model: {name} has {columns} inputs, expected {expected}")
    return quantization


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", required=True, help="JSON object with " + ", ".join(SHAPE_KEYS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", required=True, help="folder to make; must not exist")
    parser.add_argument(
        "--quantization",
        default=json.dumps(DEFAULT_QUANTIZATION),
        help="JSON object with bits, group_size and symmetric (default: %(default)s)",
    )
    parser.add_argument("--no-weights", action="store_true", help="only the shape and a tokenizer")
    options = parser.parse_args(arguments)
    shape = checked_shape(options.shape)
    quantization = checked_quantization(options.quantization, shape)
    if os.path.exists(options.out):
        print(f"make_model: {options.out} exists, nothing to do")
        return 0
    with node_files.new_folder(options.out) as partial:
        write_tokenizer(partial, shape["vocabulary_size"], shape["context_length"], options.seed)
        if not options.no_weights:
            write_weights(partial, shape, quantization, options.seed)
        write_config(partial, shape, quantization)
        write_json(
            partial, "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "_from_model_config": True}
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
