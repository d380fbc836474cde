"""Run the stages of a rehearsal; started by `python -m rehearsal` in namespaces that end with it."""

from __future__ import annotations

import contextlib
import os
import signal
import socketserver
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from rehearsal.machines import namespace
from rehearsal.stages import NODES, Rehearsal
from rehearsal.table import Stages

PREPARED = ("debian", "wires", "images", "model")
TITLES: Mapping[str, str] = {
    "boot-control": "plain Debian boots, ssh answers",
    "init": "cluster control init over ssh",
    "init-again": "cluster control init again",
    "reboot": "the control node reboots",
    "image": "image and model on the control node",
    "doctor": "cluster doctor: laptop and control node",
    "nodes": "both nodes netboot, enrol, are configured",
    "apply": "cluster apply, cluster salt state.apply",
    "doctor-all": "cluster doctor: everything",
    "firewall": "what a node reaches of the control node",
    "deploy": "cluster deploy, layers on both nodes",
    "units": "the workers' systemd units",
    "listens": "where the workers listen",
    "bench": "cluster bench",
    "bottleneck": "cluster bottleneck",
    "first-token": "from power-on to the first token",
    "undeploy": "cluster undeploy",
    "reprovision": "cluster reprovision to another image",
    "rollback": "a broken image is rolled back by itself",
}
ORDER = (*PREPARED, *TITLES)
# Stages that a control node that was kept can begin with.
BEGINNINGS = ("init", "init-again", "reboot", "image", "doctor", "nodes")
# What others build on is not among them.
SKIPPABLE = (
    *("init-again", "reboot", "doctor", "apply", "doctor-all", "firewall", "units", "listens", "bottleneck"),
    *("first-token", "reprovision"),
)
# Here an image beside the first one is wanted.
FURTHER_IMAGES = ("reprovision", "rollback")


def works(rehearsal: Rehearsal) -> dict[str, Callable[[], str]]:
    """Return stage -> what it does, in order."""
    return {
        "boot-control": rehearsal.boot_control,
        "init": rehearsal.init,
        "init-again": rehearsal.init_again,
        "reboot": rehearsal.reboot_control,
        "image": rehearsal.first_image,
        "doctor": lambda: rehearsal.doctor("laptop", "control"),
        "nodes": rehearsal.boot_nodes,
        "apply": rehearsal.apply,
        "doctor-all": lambda: rehearsal.doctor("laptop", "control", *NODES),
        "firewall": lambda: rehearsal.serving.firewall(),
        "deploy": lambda: rehearsal.serving.deploy(),
        "units": lambda: rehearsal.serving.units(),
        "listens": lambda: rehearsal.serving.listens(),
        "bench": lambda: rehearsal.serving.bench(),
        "bottleneck": lambda: rehearsal.serving.bottleneck(),
        "first-token": lambda: rehearsal.serving.first_token(),
        "undeploy": lambda: rehearsal.serving.undeploy(),
        "reprovision": rehearsal.reprovision,
        "rollback": rehearsal.roll_back,
    }


def chosen(first: str | None, skipped: Collection[str]) -> list[str]:
    """Return the stages to run after what is prepared, from `first` on, which the machine's boot comes before.

    Parameters
    ----------
    skipped
        Stages that are left out.
    """
    names = list(TITLES)
    if first:
        names = [names[0], *names[names.index(first) :]]
    return [name for name in names if name not in skipped]


@contextlib.contextmanager
def power_strip(rehearsal: Rehearsal) -> Iterator[int]:
    """Switch a node off and on for whoever names it; gives the port, on loopback."""

    class Socket(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            name = self.rfile.readline(64).decode(errors="replace").strip()
            machine = rehearsal.nodes.get(name)
            if machine is None:
                self.wfile.write(b"no such node\n")
                return
            machine.power_cycle()
            self.wfile.write(b"switched off and on\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Socket) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()


def run(log: Path, until: str | None, keep: bool, kept: bool, first: str | None, skipped: Collection[str] = ()) -> int:
    """Run every stage from `first` (after the machine's boot) up to `until`; return the exit status.

    Parameters
    ----------
    skipped
        Stages that are left out.
    """
    stages = Stages(until, ORDER)
    wanted = stages.includes(*(name for name in FURTHER_IMAGES if name not in skipped))
    rehearsal = Rehearsal(Path("/mnt"), stages.say, log, further_images=wanted)
    doing = works(rehearsal)
    if first:
        doing["boot-control"] = rehearsal.boot_unfinished if first == "init" else rehearsal.boot_kept
    started = time.monotonic()
    interrupted = False
    with (
        namespace("", [], f"rehearsal{os.getpid()}-laptop") as office,
        namespace("wire", [], f"rehearsal{os.getpid()}-wire") as wire,
        power_strip(rehearsal) as port,
    ):
        try:
            going = stages.do("debian", "a plain Debian machine (kept)", rehearsal.plain_debian)
            going = going and stages.do(
                "wires", "laptop, wires, machines", lambda: rehearsal.wire_up(office, wire, port, keep, kept)
            )
            going = going and stages.do("images", "images of the nodes (kept)", rehearsal.node_images)
            going = going and stages.do("model", "the model, as the engine loads it (kept)", rehearsal.make_model)
            for name in chosen(first, skipped):
                going = going and stages.do(name, TITLES[name], doing[name])
        except KeyboardInterrupt:
            interrupted = True
        finally:
            if stages.failed and hasattr(rehearsal, "control") and rehearsal.control.was_starved():
                rehearsal.say(
                    "the control node's machine was given no time for many seconds: let nothing else run here"
                )
            if stages.failed:
                with log.open("a") as file:
                    file.write(f"\n--- what the machines said last\n{rehearsal.explain()}\n")
            if rehearsal.nodes:
                for machine in rehearsal.nodes.values():
                    machine.power_off()
                rehearsal.control.power_off()
    stages.show(time.monotonic() - started, log)
    if interrupted:
        return 128 + signal.SIGINT
    return 1 if stages.failed else 0
