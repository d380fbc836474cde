"""The rehearsal, stage by stage; started by `python -m rehearsal` in namespaces that end with it."""

from __future__ import annotations

import contextlib
import os
import signal
import socketserver
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from rehearsal.machines import namespace
from rehearsal.stages import NODES, Rehearsal
from rehearsal.table import Stages

# Stages that a control node that was kept can begin with.
BEGINNINGS = ("init", "init-again", "reboot", "image", "doctor", "nodes")
ORDER = (
    *("debian", "wires", "images", "model", "boot-control", "init", "init-again", "reboot", "image", "doctor", "nodes"),
    *(
        "apply",
        "doctor-all",
        "firewall",
        "deploy",
        "units",
        "listens",
        "bench",
        "bottleneck",
        "first-token",
        "undeploy",
    ),
    *("reprovision", "rollback"),
)
# What others build on is not among them.
SKIPPABLE = (
    *(
        "init-again",
        "reboot",
        "doctor",
        "apply",
        "doctor-all",
        "firewall",
        "units",
        "listens",
        "bottleneck",
        "undeploy",
    ),
    "reprovision",
)


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
    folder = Path("/mnt")
    rehearsal = Rehearsal(folder, stages, log)
    doing: list[tuple[str, str, Callable[[], str]]] = [
        ("boot-control", "plain Debian boots, ssh answers", rehearsal.boot_control),
        ("init", "cluster control init over ssh", rehearsal.init),
        ("init-again", "cluster control init again", rehearsal.init_again),
        ("reboot", "the control node reboots", rehearsal.reboot_control),
        ("image", "the nodes' image, cluster image activate", rehearsal.first_image),
        ("doctor", "cluster doctor: laptop and control node", lambda: rehearsal.doctor("laptop", "control")),
        ("nodes", "both nodes netboot, enrol, are configured", rehearsal.boot_nodes),
        ("apply", "cluster apply, cluster salt state.apply", rehearsal.apply),
        ("doctor-all", "cluster doctor: everything", lambda: rehearsal.doctor("laptop", "control", *NODES)),
        ("firewall", "what a node reaches of the control node", lambda: rehearsal.serving.firewall()),
        ("deploy", "cluster deploy, layers on both nodes", lambda: rehearsal.serving.deploy()),
        ("units", "the workers' systemd units", lambda: rehearsal.serving.units()),
        ("listens", "where the workers listen", lambda: rehearsal.serving.listens()),
        ("bench", "cluster bench", lambda: rehearsal.serving.bench()),
        ("bottleneck", "cluster bottleneck", lambda: rehearsal.serving.bottleneck()),
        ("first-token", "from power-on to the first token", lambda: rehearsal.serving.first_token()),
        ("undeploy", "cluster undeploy", lambda: rehearsal.serving.undeploy()),
        ("reprovision", "cluster reprovision to another image", rehearsal.reprovision),
        ("rollback", "a broken image is rolled back by itself", rehearsal.roll_back),
    ]
    if first:
        names = [name for name, _, _ in doing]
        again = rehearsal.boot_unfinished if first == "init" else rehearsal.boot_kept
        boot = ("boot-control", "the control node that was kept boots", again)
        doing = [boot, *doing[names.index(first) :]]
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
            for name, title, work in (each for each in doing if each[0] not in skipped):
                going = going and stages.do(name, title, work)
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
