"""Engines in root folders, converted models and guarded ports: made once, whole or not at all, by Salt's own loader."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.by_file import load

pytestmark = pytest.mark.slow


def conversion(steps: list[list[str]]) -> dict[str, Any]:
    return {
        "kind": "cpu",
        "file": "model.gguf",
        "steps": steps,
        "engine": {"kind": "cpu", "engine": "made-up", "directory": "/usr"},
        "names": {
            "checkpoint": "/checkpoint",
            "weights": "Q4_0",
            "root": "/usr",
            "python": "python3",
            "generated": "true",
        },
    }


def test_a_model_is_converted_once(loaders: Any, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "tiny-gguf-1"
    steps = [["{python}", "-c", "open('{target}/model.gguf', 'w').write('{weights}')"], ["bin/true", "{checkpoint}"]]
    first = loaders.states.model.converted(str(folder), conversion=conversion(steps), scripts=str(tmp_path))
    assert first.result is True and first.changes, first.comment
    assert (folder / "model.gguf").read_text() == "Q4_0"
    second = loaders.states.model.converted(str(folder), conversion=conversion(steps), scripts=str(tmp_path))
    assert second.result is True and not second.changes


def test_how_far_a_conversion_is_can_be_asked(loaders: Any, tmp_path: Path) -> None:
    folder = tmp_path / "tiny-openvino-1"
    assert loaders.modules.model.progress(str(folder)) == {}
    Path(f"{folder}.partial.progress").write_text('{"stage": "exporting", "share": 0.1, "seconds": 3.5}')
    assert loaders.modules.model.progress(str(folder))["stage"] == "exporting"


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([["{python}", "-c", "raise SystemExit('no tensors')"]], "no tensors"),
        ([["bin/true"]], "model.gguf was not made by the steps"),
    ],
)
def test_a_conversion_that_fails_leaves_nothing(
    loaders: Any, tmp_path: Path, steps: list[list[str]], expected: str
) -> None:
    folder = tmp_path / "models" / "tiny-gguf-2"
    seen = loaders.states.model.converted(str(folder), conversion=conversion(steps), scripts=str(tmp_path))
    assert seen.result is False and expected in seen.comment
    assert [path.name for path in folder.parent.iterdir()] == ["tiny-gguf-2.lock"]


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace needs root")
def test_a_program_in_a_root_folder_sees_that_folder_and_leaves_no_mount(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for folder in ("bin", "lib", "lib64", "usr"):
        if (Path("/") / folder).is_symlink():
            (root / folder).parent.mkdir(exist_ok=True)
            (root / folder).symlink_to((Path("/") / folder).readlink())
    for folder in ("usr", "etc"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "marker").write_text("inside")
    # The host's own programs stand in for the folder's: mounted in a namespace of this test's command.
    command = load("_utils/engine_environment.py").command(
        {"directory": str(root), "root_folder": True}, "cat", ["/marker"]
    )
    script = f'mount --rbind /usr {root}/usr && exec "$@"'
    outer = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *command]
    seen = subprocess.run(outer, capture_output=True, text=True, check=False, timeout=60)
    assert (seen.returncode, seen.stdout) == (0, "inside"), seen.stderr
    assert str(root) not in Path("/proc/self/mounts").read_text()


STATUS = "grep -E '^(Uid|Gid|Groups|CapEff|CapAmb|NoNewPrivs)' /proc/self/status"


def engine_user(home: Path) -> tuple[Any, Any]:
    module = load("_utils/engine_environment.py")
    return module, module.Account(47710, 47710, (44, 47710), str(home))


def fields(text: str) -> dict[str, list[str]]:
    return {name: values.split() for name, _, values in (line.partition(":") for line in text.splitlines())}


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is root's to become")
def test_an_engine_is_not_root_and_becomes_nobody_else(tmp_path: Path) -> None:
    module, who = engine_user(tmp_path)
    # Without an engine's Python there is nothing that it would have to be let into.
    command = module.command_as(who, {"directory": "/"}, "bin/sh", ["-c", STATUS])
    seen = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found = fields(seen.stdout)
    assert set(found["Uid"]) == set(found["Gid"]) == {"47710"}
    assert found["Groups"] == ["44", "47710"]
    assert (int(found["CapEff"][0], 16), found["NoNewPrivs"]) == (0, ["1"])


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is root's to become")
def test_a_python_in_a_closed_folder_is_read_and_nothing_is_written_there(tmp_path: Path) -> None:
    module, who = engine_user(tmp_path)
    closed = tmp_path / "closed"
    (closed / "bin").mkdir(parents=True)
    (closed / "bin" / "python").symlink_to("/bin/sh")
    (closed / "python").write_text("")
    (closed / "bin" / "engine").write_text(f"#!/bin/sh\n{STATUS}\ntouch {closed}/new && echo written\n")
    (closed / "bin" / "engine").chmod(0o755)
    (closed / "bin" / "python").unlink()
    (closed / "bin" / "python").symlink_to(closed / "python")
    closed.chmod(0o700)
    assert not module.is_reachable(str(closed / "bin" / "python"))
    command = module.command_as(who, {"directory": str(closed)}, "bin/engine", [])
    seen = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    found = fields(seen.stdout)
    # CAP_DAC_READ_SEARCH is the third.
    assert int(found["CapEff"][0], 16) == int(found["CapAmb"][0], 16) == 1 << 2
    assert "written" not in seen.stdout and not (closed / "new").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace needs root")
def test_a_program_in_a_root_folder_is_the_engines_user(tmp_path: Path) -> None:
    module, who = engine_user(tmp_path)
    root = tmp_path / "root"
    for folder in ("bin", "lib", "lib64"):
        if (Path("/") / folder).is_symlink():
            root.mkdir(exist_ok=True)
            (root / folder).symlink_to((Path("/") / folder).readlink())
    for folder in ("usr", "etc"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for parent in (root, *root.parents):
        # pytest's folders are root's alone, and the user has to get through them.
        if parent.is_relative_to(tmp_path.parents[1]):
            parent.chmod(0o755)
    command = module.command_as(who, {"directory": str(root), "root_folder": True}, "sh", ["-c", STATUS])
    script = f'mount --rbind /usr {root}/usr && exec "$@"'
    outer = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *command]
    seen = subprocess.run(outer, capture_output=True, text=True, check=False, timeout=60)
    assert seen.returncode == 0, seen.stderr
    found = fields(seen.stdout)
    assert (set(found["Uid"]), found["Groups"]) == ({"47710"}, ["44", "47710"])
    assert (int(found["CapEff"][0], 16), found["NoNewPrivs"]) == (0, ["1"])


# What a worker's node lets in, tried by another machine on a cable: in namespaces of this test's command alone.
GUARDED = """
import importlib.util, pathlib, signal, socket, subprocess, sys
utilities, module, guard_file = sys.argv[1:]
sys.path.insert(0, utilities)
spec = importlib.util.spec_from_file_location("engine", module)
engine = importlib.util.module_from_spec(spec)
spec.loader.exec_module(engine)
engine.GUARD_FILE = guard_file

def ip(*words):
    subprocess.run(["ip", *words], check=True)

other = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo up; exec sleep 300"], stdout=subprocess.PIPE, text=True)
try:
    assert other.stdout.readline() == "up\\n"
    there = ["nsenter", "--target", str(other.pid), "--net"]
    ip("link", "set", "lo", "up")
    ip("link", "add", "one", "type", "veth", "peer", "name", "two", "netns", str(other.pid))
    for address in ("10.9.0.1/24", "fd00:9::1/64"):
        ip("address", "add", address, "dev", "one", *(["nodad"] if ":" in address else []))
    ip("link", "set", "one", "up")
    for address in ("10.9.0.2/24", "10.9.0.3/24", "fd00:9::2/64"):
        options = ["nodad"] if ":" in address else []
        subprocess.run([*there, "ip", "address", "add", address, "dev", "two", *options], check=True)
    subprocess.run([*there, "ip", "link", "set", "two", "up"], check=True)

    api, coordinator, further = 8000, 29500, 9100
    servers = [socket.create_server(("", port)) for port in (api, coordinator, further, 0)]
    six = socket.create_server(("::", 8000), family=socket.AF_INET6) if socket.has_dualstack_ipv6() else None
    chosen = servers[-1].getsockname()[1]
    connect = "import socket, sys; own, far, port = sys.argv[1:];"
    connect += "socket.create_connection((far, int(port)), 2, (own, 0))"

    def reaches(source, port, target="10.9.0.1"):
        command = [*there, sys.executable, "-c", connect, source, target, str(port)]
        return subprocess.run(command, capture_output=True).returncode == 0

    def local(port):
        with socket.socket() as client:
            client.settimeout(2)
            return client.connect_ex(("10.9.0.1", port)) == 0

    assert all(reaches("10.9.0.3", port) for port in (api, coordinator, further, chosen)), "nothing is closed before"
    guards = [
        {"ports": [coordinator], "ephemeral": True, "allowed": ["10.9.0.1", "10.9.0.2"]},
        {"ports": [api], "ephemeral": False, "allowed": ["10.9.0.0/31", "10.9.0.2"]},
    ]
    assert engine.guard(guards, test=True) and not pathlib.Path(guard_file).exists()
    assert engine.guard(guards)
    assert not engine.guard(guards), "the second time nothing changes"
    tried = (api, coordinator, chosen, further)
    seen = {source: [reaches(source, port) for port in tried] for source in ("10.9.0.2", "10.9.0.3")}
    assert seen == {"10.9.0.2": [True] * 4, "10.9.0.3": [False, False, False, True]}, seen
    if six is not None:
        assert not reaches("fd00:9::2", api, "fd00:9::1"), "by another family"
    assert all(local(port) for port in (api, coordinator, chosen)), "the node itself"
    # Answers to the node's own connections come to ports of the same range.
    serve = "import socket; s = socket.create_server(('10.9.0.3', 7000)); print('up', flush=True);"
    serve += "s.accept()[0].sendall(b'answer')"
    served = subprocess.Popen([*there, sys.executable, "-c", serve], stdout=subprocess.PIPE, text=True)
    assert served.stdout.readline() == "up\\n"
    with socket.create_connection(("10.9.0.3", 7000), 5) as client:
        assert client.recv(10) == b"answer"
    served.wait(30)
    assert engine.guard([]) and not engine.guard([])
    assert all(reaches("10.9.0.3", port) for port in (api, coordinator, chosen)), "all is as before"
finally:
    other.send_signal(signal.SIGKILL)
    other.wait()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root")
def test_a_workers_ports_are_open_to_those_who_have_to_reach_them(tmp_path: Path) -> None:
    if shutil.which("nft") is None:
        pytest.skip("nftables is not installed")
    root = Path(__file__).parents[2]
    arguments = [str(root / "_utils"), str(root / "_modules" / "engine.py"), str(tmp_path / "peers.nft")]
    inside = ["unshare", "--net", sys.executable, "-c", GUARDED, *arguments]
    seen = subprocess.run(inside, capture_output=True, text=True, check=False, timeout=240)
    assert seen.returncode == 0, seen.stderr


def test_what_is_listened_on_is_seen_without_connecting() -> None:
    worker = load("_modules/worker.py")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert address in worker._listened()
        assert worker._stage([], {"watch": {"ready": {"listening": address}}}) == "ready"
    assert worker._stage(["x"], {"watch": {"ready": {"listening": address}}}) == "loading"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("error: invalid argument: --nonsense", "error: invalid argument: --nonsense; this version of llama.cpp"),
        (
            "0.00.025.710 E llama_model_load: error loading model: llama_model_loader: failed to load from /m.gguf",
            "the model cannot be loaded: llama_model_loader: failed to load from /m.gguf",
        ),
        ("./src/ggml-rpc/ggml-rpc.cpp:650: Failed to connect to 10.77.1.11:50052", "the RPC server of another node"),
        (
            "0.01.000.000 E ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 26843545600",
            "the model or its cache does not fit: ",
        ),
        (
            "./ggml/src/ggml-rpc/ggml-rpc.cpp:420: GGML_ASSERT(status) failed",
            "llama.cpp stopped itself: status was not so",
        ),
        ("Failed to create server socket", "the port that the worker is to listen on is taken"),
    ],
)
def test_what_llamacpp_reports_is_a_sentence(loaders: Any, line: str, expected: str) -> None:
    assert loaders.modules.worker.failure([line], "llamacpp_failures").startswith(expected)


def test_what_engines_say_should_be_looked_at_is(tmp_path: Path) -> None:
    module = load("_modules/engine.py")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "devices").symlink_to("/bin/echo")
    (tmp_path / ".complete").write_text("")
    check = {"what": "sees the card", "command": ["bin/devices", "CPU", "GPU.1"], "expected": "GPU", "next": "look"}
    own = {"kind": "xpu", "directory": str(tmp_path), "checks": [check, {**check, "expected": "NPU"}]}
    absent = {"kind": "other", "directory": str(tmp_path / "absent"), "checks": [check]}
    broken = {**own, "kind": "broken", "checks": [{**check, "command": ["bin/none"]}]}
    module.__pillar__ = {"engine": own, "engines": [absent, broken]}
    found = module.checks()
    assert [(each["kind"], each["is_well"]) for each in found] == [("xpu", True), ("xpu", False), ("broken", False)]
    assert found[1]["evidence"] == "CPU GPU.1; expected NPU"
