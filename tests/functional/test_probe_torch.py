"""The probe by the engine's real torch: two ranks over loopback, and a device that the processor stands in for."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bottleneck.profile import find_profile, load_profile

FILES = Path(__file__).parents[2] / "salt" / "probe" / "files"
PYTHON = Path(load_profile(find_profile("embedded")).engine_of("node0").directory()) / "bin/python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not PYTHON.exists(), reason="no engine with torch here: cluster demo installs it"),
]

# A card that torch's processor build stands in for: every array that is asked for on it is noted, and made.
CARD = """
import json, sys, types
import torch
import device_measures as measures

placed = []
waits = []
def on_the_card(make):
    def made(*arguments, device=None, **keywords):
        placed.append(device)
        return make(*arguments, **keywords)
    return made
for name in ("ones", "randn", "empty", "randint"):
    setattr(torch, name, on_the_card(getattr(torch, name)))
torch.Tensor.pin_memory = lambda self: self
torch.card = types.SimpleNamespace(
    is_available=lambda: True,
    synchronize=lambda: waits.append(1),
    get_device_name=lambda index: "Made-up card",
    mem_get_info=lambda: (2**26, 2**26),
)
measures.LARGEST_PRODUCT = 256
measures.REPEAT_SECONDS = 0.001
values, notes = measures.measure(measures.Device(torch, "card"))
json.dump({"values": values, "notes": notes, "placed": sorted({str(each) for each in placed}), "waits": len(waits)},
          sys.stdout)
"""


def specification(**changes: Any) -> str:
    specification = {"deadline_seconds": 120, "measure": False, "cores": 1, "directory": "/nowhere", "collectives": []}
    return json.dumps({**specification, "device": "cpu", **changes})


def test_a_device_is_measured_with_torchs_own_products() -> None:
    found = subprocess.run(
        [PYTHON, "-B", "-c", CARD], cwd=FILES, capture_output=True, text=True, check=True, env={"OMP_NUM_THREADS": "1"}
    )
    document = json.loads(found.stdout)
    assert document["placed"] == ["None", "card"], "only the host's buffer was made elsewhere"
    assert document["waits"] > 2 * len(document["values"])
    for name in ("memory_read_bytes_per_second", "memory_copy_bytes_per_second", "gemm_bf16_flops_per_second"):
        assert all(repeat > 1e6 for repeat in document["values"][name])
    # This torch has the product or says why not: never a figure of another format.
    for form in ("fp8", "int8"):
        assert (f"gemm_{form}_flops_per_second" in document["values"]) != (f"gemm_{form}" in document["notes"])


def test_two_ranks_measure_on_the_device_of_the_map(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    message = {"kind": "all_reduce", "backend": "gloo", "address": "127.0.0.1", "port": port, "world": 2}
    message |= {"interface": "lo", "interface_environment": ["GLOO_SOCKET_IFNAME"], "sizes_bytes": [2048, 65536]}
    outputs = [tmp_path / f"{rank}.json" for rank in (0, 1)]
    running = [
        subprocess.Popen(
            [PYTHON, "-B", FILES / "probe.py", "node", specification(collectives=[{**message, "rank": rank}]), output],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, output in enumerate(outputs)
    ]
    for process in running:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    found = [json.loads(output.read_text()) for output in outputs]
    assert found[0]["device"]["kind"] == "cpu"
    (seen,) = found[0]["collectives"]
    assert set(seen["sizes"]) == {"2048", "65536"}
    assert all(0 < seconds < 10 for repeats in seen["sizes"].values() for seconds in repeats)
    assert found[1]["collectives"][0]["sizes"] == {"2048": [], "65536": []}, "rank 0 tells"


def test_a_card_that_torch_does_not_have_is_not_measured(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    whole = specification(measure=True, directory=str(tmp_path), device="xpu")
    subprocess.run([PYTHON, "-B", FILES / "probe.py", "node", whole, output], check=True)
    found = json.loads(output.read_text())
    assert set(found["values"]) == {"process_launch_seconds", "disk_read_bytes_per_second"}
    assert "has no device xpu" in found["notes"]["accelerator"] and found["device"] is None
    assert sys.executable != str(PYTHON)


def test_the_module_runs_it_under_the_supervisor_with_the_engines_python(
    loaders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loaders.modules["supervise.start"].__globals__, "DIRECTORY", str(tmp_path / "supervise"))
    namespace = loaders.modules["probe.stop"].__globals__
    for name, value in {
        "SCRIPT": str(FILES / "probe.py"),
        "RUNTIME_DIRECTORY": "run",
        "STATE_DIRECTORY": "state",
    }.items():
        monkeypatch.setitem(namespace, name, str(tmp_path / value))
    start = loaders.modules["supervise.start"]

    def logged(unit: str, command: list[str], environment: dict[str, str], log: str) -> Any:
        return start(unit, command, environment, str(tmp_path / Path(log).name))

    own = {name: loaders.modules[name] for name in ("supervise.status", "supervise.stop")}
    monkeypatch.setitem(namespace, "__salt__", {**own, "supervise.start": logged})
    engine = {"directory": str(PYTHON.parents[1]), "preload": [], "environment": {}}
    nodes = {"node0": {"cores": 1, "collectives": [], "engine": engine, "device": "cpu", "bench": None}}
    found = loaders.modules.probe.node(nodes, seconds=200)
    assert found["device"]["kind"] == "cpu" and found["device"]["by"].startswith("torch ")
    for name in ("memory_read_bytes_per_second", "gemm_bf16_flops_per_second", "kernel_dispatch_seconds"):
        assert len(found["values"][name]) == 7 and min(found["values"][name]) > 0
    assert "memory_copy_bytes_per_second" not in found["values"], "of a card alone"
