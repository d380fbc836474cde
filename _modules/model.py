"""
Put a model's checkpoint in place: made here, copied from a folder, or from the hub.
"""

import json
import os
import shutil
import subprocess

import salt.utils.files


def __virtual__():
    return "model"


def present(directory):
    """
    Return whether a checkpoint is at a directory.

    CLI Example:

    .. code-block:: bash

        salt '*' model.present /opt/cluster/model
    """
    return os.path.exists(os.path.join(directory, "config.json"))


def make(directory, model, engine_directory, maker):
    """
    Make a checkpoint with random weights unless it is there; return whether it was made.

    CLI Example:

    .. code-block:: bash

        salt node0 model.make /opt/cluster/models/tiny '{"seed": 1, "shape": {...}}' /opt/cluster/engine make_model.py

    directory
        appears whole or not at all
    model
        the profile's model section, with ``shape`` and ``seed``
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
            ]
        )
    return True


def download(directory, source, engine_directory):
    """
    Fetch a checkpoint from the hub by name unless it is there.

    CLI Example:

    .. code-block:: bash

        salt node0 model.download /opt/cluster/models/small mistralai/Mistral-Small-Instruct-2409 /opt/cluster/engine
    """
    os.makedirs(os.path.dirname(directory), exist_ok=True)
    with salt.utils.files.flopen(directory + ".lock", "w"):
        if present(directory):
            return False
        partial = directory + ".partial"
        _run([os.path.join(engine_directory, "bin/hf"), "download", source, "--local-dir", partial])
        shutil.rmtree(directory, ignore_errors=True)
        os.rename(partial, directory)
    return True


def _run(command):
    finished = subprocess.run(command, capture_output=True, text=True, timeout=7200, check=False)
    if finished.returncode:
        lines = [line for line in finished.stderr.splitlines() if line.strip()]
        raise RuntimeError(lines[-1] if lines else f"{command[0]} ended with status {finished.returncode}")
