"""
Put a model in place: a checkpoint made here, copied from a folder, or from the hub; and the form an engine loads.
"""

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import engine_environment
import failure_reasons
import hub_failures
import model_transfer
import node_files
import salt.utils.files

if TYPE_CHECKING:
    from loader_dunders import __opts__

# A checkpoint of 70 GB over a line of 100 Mbit/s.
FETCH_SECONDS = 7200
# Only what a log can hold; advice for people at a terminal, and what asks the hub beside the checkpoint, is left out.
FETCH_ENVIRONMENT = {"NO_COLOR": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
ADVICE = "Hint:"
# In a folder of a converted model: it is whole.
CONVERTED = ".converted"
# Beside a folder that is on its way: how far it is. Scripts that convert know it by their target, `.partial`.
PROGRESS = ".partial.progress"


def __virtual__() -> str:
    return "model"


def present(directory: str) -> bool:
    """
    Return whether a checkpoint is at a directory.

    CLI Example:

    .. code-block:: bash

        salt '*' model.present /opt/cluster/model
    """
    return os.path.exists(os.path.join(directory, "config.json"))


def make(directory: str, model: Mapping[str, Any], engine_directory: str, maker: str) -> bool:
    """
    Make a checkpoint with random weights unless it is there; return whether it was made.

    CLI Example:

    .. code-block:: bash

        salt node0 model.make /opt/cluster/models/tiny '{"seed": 1, ...}' /opt/cluster/engine make_model.py

    directory
        appears whole or not at all
    model
        the profile's model section, with ``shape``, ``quantization`` and ``seed``; where its ``source`` is ``dummy``,
        no weights are made
    engine_directory
        environment whose Python has torch and tokenizers
    maker
        path of make_model.py on the node
    """
    os.makedirs(os.path.dirname(directory), exist_ok=True)
    with salt.utils.files.flopen(directory + ".lock", "w"):
        if present(directory):
            return False
        _run(
            [
                os.path.join(engine_directory, "bin/python"),
                maker,
                *("--shape", json.dumps(model["shape"]), "--seed", str(model["seed"]), "--out", directory),
                *("--quantization", json.dumps(model["quantization"])),
                *(["--no-weights"] if model.get("source") == "dummy" else []),
            ]
        )
    return True


def download(directory: str, source: str, engine_directory: str) -> bool:
    """
    Fetch a checkpoint from the hub by name unless it is there; return whether it was fetched.

    CLI Example:

    .. code-block:: bash

        salt node0 model.download /opt/cluster/models/small mistralai/Mistral-Small-Instruct-2409 /opt/cluster/engine

    What was fetched before a failure is kept beside ``directory``, and the next call goes on from there.
    """
    os.makedirs(os.path.dirname(directory), exist_ok=True)
    with salt.utils.files.flopen(directory + ".lock", "w"):
        if present(directory):
            return False
        partial = directory + ".partial"
        _run([os.path.join(engine_directory, "bin/hf"), "download", source, "--local-dir", partial], FETCH_ENVIRONMENT)
        if not present(partial):
            raise RuntimeError(f"{source} has no config.json: it is not in the form that the engine loads")
        node_files.replace_folder(partial, directory)
    return True


def fetch(directory: str, server: str) -> bool:
    """
    Copy a model from the control node, when it has one of this name; return whether it was copied.

    CLI Example:

    .. code-block:: bash

        salt '*' model.fetch /var/cache/cluster/models/tiny-gguf-0123456789ab http://10.40.0.1:8069/models

    The name carries the digest of what the model is made of, and each file is checked with the SHA-256 that the
    control node has for it. What was fetched before a failure is kept beside ``directory``, and the next call goes on
    from there. ``directory`` appears whole or not at all.

    directory
        folder of the model
    server
        address of the control node's models
    """
    os.makedirs(os.path.dirname(directory), exist_ok=True)
    with salt.utils.files.flopen(directory + ".lock", "w"):
        if present(directory) or converted(directory):
            return False
        started = time.monotonic()

        def report(there: int, total: int) -> None:
            share, seconds = there / total if total else 1.0, time.monotonic() - started
            node_files.write_json(
                directory + PROGRESS, {"stage": "fetching", "share": round(share, 4), "seconds": round(seconds, 1)}
            )

        try:
            partial = directory + ".fetched"
            if not model_transfer.fetch(partial, f"{server}/{os.path.basename(directory)}", report):
                return False
            node_files.replace_folder(partial, directory)
            return True
        finally:
            node_files.remove(directory + PROGRESS)


def convert(directory: str, conversion: Mapping[str, Any], scripts: str) -> bool:
    """
    Make a model in the form that an engine loads unless it is there; return whether it was made.

    CLI Example:

    .. code-block:: bash

        salt '*' state.apply model    # the profile says what is made of what

    directory
        appears whole or not at all
    conversion
        ``steps``: programs with {names} in their words; ``names``: what those are; ``engine``: the engine map's entry,
        whose programs the steps are, but for {python}; ``file``: what has to be there afterwards
    scripts
        folder with this project's scripts for models
    """
    os.makedirs(os.path.dirname(directory), exist_ok=True)
    with salt.utils.files.flopen(directory + ".lock", "w"):
        if os.path.exists(os.path.join(directory, CONVERTED)):
            return False
        with node_files.new_folder(directory) as partial:
            names = {**conversion["names"], "target": partial, "scripts": scripts}
            for step in conversion["steps"]:
                words = [word.format_map(names) for word in step]
                own = step[0] == "{python}"
                _run(words if own else engine_environment.command(conversion["engine"], words[0], words[1:]))
            made = os.path.join(partial, conversion["file"])
            if not os.path.exists(made):
                raise RuntimeError(f"{made} was not made by the steps of the conversion (engine_interfaces.yaml)")
            node_files.write_text(os.path.join(partial, CONVERTED), "\n")
    return True


def progress(directory: str) -> dict[str, Any]:
    """
    Return how far a transfer or a conversion is: ``stage``, ``share`` (0 to 1) and ``seconds``; empty when none tells.

    CLI Example:

    .. code-block:: bash

        salt '*' model.progress /var/cache/cluster/models/tiny-openvino-1
    """
    return dict(node_files.read_json(directory + PROGRESS) or {})


def converted(directory: str) -> bool:
    """
    Return whether a converted model is complete.

    CLI Example:

    .. code-block:: bash

        salt '*' model.converted /var/cache/cluster/models/tiny-gguf-1
    """
    return os.path.exists(os.path.join(directory, CONVERTED))


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a program to its end; raise with the reason of its failure in one sentence."""
    try:
        finished = subprocess.run(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=FETCH_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise RuntimeError(
            f"{command[0]} is not there: the engine is not installed; next: cluster apply engine"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{command[0]} did not end within {FETCH_SECONDS} s; next: cluster apply model") from error
    if finished.returncode:
        raise RuntimeError(_reason(command, finished))


def _reason(command: Sequence[str], finished: "subprocess.CompletedProcess[str]") -> str:
    lines = [line for line in finished.stderr.splitlines() if line.strip() and not line.startswith(ADVICE)]
    ended = f"Process {os.path.basename(command[0])} terminated (exit code: {finished.returncode})"
    found = failure_reasons.reason([*lines, ended], hub_failures.HUB)
    if found is None:
        return lines[-1] if lines else f"{command[0]} ended with status {finished.returncode}"
    return found.sentence.replace("MINION", __opts__["id"])
