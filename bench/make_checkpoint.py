"""Make a checkpoint with random weights from a config.json, in 16 bit, with a tokenizer of its own.

Runs under the engine's Python (torch, transformers, tokenizers); no network.

    make_checkpoint.py CONFIG_JSON FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "salt" / "model" / "files"))

import make_model


def main(text: str, folder: str) -> None:
    """Write the checkpoint."""
    document = json.loads(text)
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    config = AutoConfig.for_model(**document)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    # As a hub has it: what transformers adds of its own is not the model's.
    (Path(folder) / "config.json").write_text(json.dumps(document, indent=1))
    make_model.write_tokenizer(folder, document["vocab_size"], document["max_position_embeddings"], 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
