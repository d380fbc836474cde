"""Convert a checkpoint to GGUF with the converter of Debian's llama.cpp packages.

Runs under a Python that has torch and transformers, which those packages lack; the converter and its library are taken
from the packages' root folder. Nothing is fetched.

Usage::

    make_gguf.py --root ROOT --checkpoint DIR --out FILE [--generated true]
"""

import argparse
import importlib
import os
import runpy
import sys
import tempfile
from collections.abc import Sequence

CONVERTER = "usr/share/doc/llama.cpp-tools/scripts/convert_hf_to_gguf.py"
# Folders of the packages that the converter imports; nothing else of the root folder may be seen, whose other Python
# modules are built for another version.
LIBRARIES = ("usr/lib/python3/dist-packages/gguf", "usr/share/llama.cpp/llama.cpp-tools/conversion")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="root folder with the packages")
    parser.add_argument("--checkpoint", required=True, help="folder with config.json")
    parser.add_argument("--out", required=True, help="file to write, in 16 bit")
    parser.add_argument("--generated", default="false", help="true when make_model.py made the checkpoint")
    options = parser.parse_args(arguments)
    missing = [path for path in (CONVERTER, *LIBRARIES) if not os.path.exists(os.path.join(options.root, path))]
    if missing:
        raise SystemExit(
            f"make_gguf: {missing[0]} is not below {options.root}; expected the root folder of llama.cpp-tools and "
            "python3-gguf"
        )
    with tempfile.TemporaryDirectory() as folder:
        for path in LIBRARIES:
            os.symlink(os.path.join(options.root, path), os.path.join(folder, os.path.basename(path)))
        sys.path.insert(0, folder)
        if options.generated == "true":
            # The converter knows tokenizers by what they make of a text; one that was trained here splits words as
            # GPT-2's did, which is llama.cpp's default.
            base = importlib.import_module("conversion.base")
            base.TextModel.get_vocab_base_pre = lambda *_: "default"
        program = os.path.join(options.root, CONVERTER)
        sys.argv = [program, options.checkpoint, "--outfile", options.out, "--outtype", "f16"]
        runpy.run_path(program, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
