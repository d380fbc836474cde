"""The rehearsal's stages: from a plain Debian machine to a cluster that serves, is reprovisioned and rolled back."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bottleneck.profile import load_profile
from bottleneck.profile.types import Profile
from netboot.image.store import Store
from rehearsal import images, model
from rehearsal.control import ControlMachine, make_key, new_disk
from rehearsal.debian import CACHE, CONTROL_ADDRESS, DISK, plain_machine
from rehearsal.laptop import HOST, CommandError, Laptop
from rehearsal.machines import Machine, Network, wait_for
from rehearsal.serving import Serving

KEPT = CACHE / "kept"
MINUTE = 60.0
LOST_CONNECTIONS = 2
NODE_MEMORY_MIB = 1536
# MACs on the cluster's network and on the wire between the two, and whether the firmware is UEFI.
NODES = {
    "node0": ("02:97:00:00:00:10", "02:97:00:00:01:10", False),
    "node1": ("02:97:00:00:00:11", "02:97:00:00:01:11", True),
}


class Rehearsal:
    """The machines, and what is done with them.

    Parameters
    ----------
    further_images
        Whether images beside the first one are wanted.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], log: Path, *, further_images: bool = True) -> None:
        self.folder, self.say, self.log, self.further_images = folder, say, log, further_images
        self.debian: Path
        self.host_key: Path
        self.laptop: Laptop
        self.control: ControlMachine
        self.nodes: dict[str, Machine] = {}
        self.serving: Serving
        self.store: Store
        self.digests: dict[str, str] = {}
        self.models: list[Path] = []

    # What is made once and kept --------------------------------------------------------------

    def plain_debian(self) -> str:
        """A plain Debian machine's disk, and the wheels."""
        self.debian = plain_machine(self.say)
        return "nothing of ours in it"

    def node_images(self) -> str:
        """The images of the nodes that are wanted."""
        names = images.NAMES if self.further_images else (images.FIRST,)
        self.store, self.digests = images.build_all(self.profile, names, self.say)
        return ", ".join(f"{name} {digest}" for name, digest in self.digests.items())

    def make_model(self) -> str:
        """Checkpoint and GGUF, under the names of their content."""
        self.models = model.make(self.profile, self.say)
        return ", ".join(folder.name for folder in self.models)

    @property
    def profile(self) -> Profile:
        """The rehearsal's profile, as the laptop has it."""
        return load_profile(self.laptop.tree / "profiles" / "rehearsal" / "v1.yaml")

    # The control node ------------------------------------------------------------------------

    def wire_up(self, office: Network, wire: Network, power_port: int, keep: bool, kept: bool) -> str:
        """Laptop, control node and nodes, switched off and cabled."""
        self.laptop = Laptop(self.folder, office, self.log)
        self.laptop.set_up(power_port)
        # What is to be kept is where it is kept: a run that ends anywhere can be taken up again.
        place = KEPT if keep or kept else self.folder
        if not kept:
            shutil.rmtree(KEPT if keep else self.folder / "none", ignore_errors=True)
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            make_key(place / "identity")
            make_key(place / "host_key")
            new_disk(self.debian, place / DISK, place / "identity.pub", place / "host_key")
        if place != self.folder:
            shutil.copy2(place / "identity", self.laptop.identity)
        self.host_key = place / "host_key.pub"
        disk = place / DISK
        office.run("ip", "tuntap", "add", "dev", "office", "mode", "tap")
        wire.run("ip", "tuntap", "add", "dev", "control", "mode", "tap")
        self.control = ControlMachine(self.debian, disk, self.folder, office, wire)
        direct = wire.further_wire("direct")
        self.nodes = {
            name: Machine(wire, self.folder, name, mac, uefi, memory_mib=NODE_MEMORY_MIB, second=(direct, second))
            for name, (mac, second, uefi) in NODES.items()
        }
        self.serving = Serving(self.laptop, self.profile)
        return "a namespace for the laptop, one for the cluster's wire"

    def boot_control(self) -> str:
        """The control node's machine is up and answers ssh."""
        self.control.power_on()
        wait_for(self._answers, 20 * MINUTE, "the control node answers ssh", 2.0)
        return "Debian trixie, from its disk"

    def _answers(self) -> bool:
        if not self.control.runs():
            raise CommandError(f"the machine has ended: {self.control.output_text()}")
        probe = f"import socket; print(socket.create_connection(('{CONTROL_ADDRESS}', 22), 5).recv(4))"
        return "SSH-" in self.laptop.network.run(sys.executable, "-c", probe, check=False).stdout

    def _fingerprint(self) -> str:
        listed = subprocess.run(["ssh-keygen", "-lf", self.host_key], capture_output=True, text=True, check=True)
        return listed.stdout.split()[1]

    def boot_kept(self) -> str:
        """A control node that has been set up before boots; its key is made known."""
        shown = self.boot_control()
        self.laptop.cluster("control", "trust", HOST, "--fingerprint", self._fingerprint(), timeout=10 * MINUTE)
        wait_for(self._services, 15 * MINUTE, "the control node's services are back", 5.0)
        return shown

    def boot_unfinished(self) -> str:
        """A control node whose set-up was cut off boots; its disk is as it was when that happened."""
        return self.boot_control()

    def init(self) -> str:
        """`cluster control init` over ssh."""
        trust = ("--fingerprint", self._fingerprint())
        lost, shown = 0, ""
        ends = (0, 1, 4)
        while not shown and lost <= LOST_CONNECTIONS:
            shown = self.laptop.cluster("control", "init", HOST, *trust, "--json", timeout=30 * MINUTE, expected=ends)
            if not shown:
                # A machine that this one gives no time to for 15 s looks gone; the remedy is to do it again.
                lost += 1
                wait_for(self._answers, 20 * MINUTE, "the control node answers ssh again", 2.0)
        if not shown:
            raise CommandError(
                f"it ended {lost} times without a result, as when the connection is lost; the log says how"
            )
        found = json.loads(shown)
        if found["failed"]:
            raise CommandError("; ".join(f"{state['id']}: {state['comment']}" for state in found["failed"]))
        again = f", after {lost} lost connections" if lost else ""
        return f"{found['states']} states, {len(found['changed'])} changed{again}"

    def init_again(self) -> str:
        """The same again, which changes nothing."""
        found = self.laptop.cluster_json("control", "init", timeout=30 * MINUTE)
        if found["changed"]:
            raise CommandError(f"the second init changed {json.dumps(found['changed'])}")
        return f"{found['states']} states, none changed"

    def reboot_control(self) -> str:
        """The control node is switched off and on."""
        with contextlib.suppress(CommandError):
            # The connection goes with the machine.
            self.laptop.cluster("control", "cmd", "--", "systemctl", "poweroff", timeout=MINUTE)
        self.control.wait_off(10 * MINUTE)
        self.boot_control()
        wait_for(self._services, 15 * MINUTE, "the control node's services are back", 5.0)
        return "its services are back"

    def _services(self) -> bool:
        units = (
            *("salt-master", "cluster-dnsmasq", "cluster-gateway", "cluster-interface", "cluster-firewall"),
            *("chrony", "prometheus"),
        )
        with contextlib.suppress(CommandError):
            seen = self.laptop.cluster("control", "cmd", "--", "systemctl", "is-active", *units, timeout=5 * MINUTE)
            return seen.split() == ["active"] * len(units)
        return False

    def first_image(self) -> str:
        """The first image is on the control node, and active; the model is there for the nodes to fetch."""
        for folder in self.models:
            self.laptop.send(folder, f"/var/lib/cluster/models/{folder.name}")
        return self._activate(images.FIRST)

    def _activate(self, name: str, *options: str) -> str:
        digest = self.digests[name]
        root = "/var/lib/cluster/images"
        for layer in self.store.manifest(digest).layers:
            self.laptop.send(
                self.store.layer_path(layer.sha256), f"{root}/layers/{layer.sha256}.squashfs", folder=False
            )
        self.laptop.send(self.store.folder(digest), f"{root}/images/{digest}")
        # It verifies every file before anything changes.
        self.laptop.cluster("image", "activate", digest, *options, timeout=15 * MINUTE)
        return digest

    def doctor(self, *places: str) -> str:
        """`cluster doctor` finds nothing that has failed."""
        found = self.laptop.cluster_json("doctor", timeout=15 * MINUTE, expected=(0, 1))
        failed = [
            f"{check['place']}: {check['what']}: {check['evidence']}"
            for check in found["checks"]
            if check["status"] == "failed" and check["place"] in places
        ]
        if failed:
            raise CommandError("; ".join(failed))
        warned = [f"{check['place']}: {check['what']}" for check in found["checks"] if check["status"] == "warning"]
        return f"{found['counts']['ok']} ok, none failed" + (f"; warnings: {', '.join(warned)}" if warned else "")

    # The nodes -------------------------------------------------------------------------------

    def boot_nodes(self) -> str:
        """Both nodes netboot, enrol, and are configured by the reactor."""
        # A control node that was kept has the records of earlier boots.
        earlier = self._boots()
        for machine in self.nodes.values():
            machine.power_on()
        self._until_stage("applied", 40 * MINUTE, earlier)
        return ", ".join(f"{name} ({'UEFI' if machine.uefi else 'BIOS'})" for name, machine in self.nodes.items())

    def _view(self) -> dict[str, Any]:
        found: dict[str, Any] = self.laptop.cluster_json("boot", "watch", timeout=10 * MINUTE)["nodes"]
        return found

    def _boots(self) -> dict[str, str | None]:
        """Return node -> its last boot that was recorded."""
        return {name: (node["boot"] or {}).get("id") for name, node in self._view().items()}

    def _until_stage(self, stage: str, seconds: float, earlier: Mapping[str, str | None]) -> None:
        """Wait until both nodes reach a stage in another boot than an earlier one."""
        shown = ""

        def reached() -> bool:
            nonlocal shown
            for machine in self.nodes.values():
                if machine.gave_up():
                    # Under emulation the firmware's TFTP times out now and then; nothing of ours runs by then.
                    machine.power_cycle()
            view = self._view()
            shown = ", ".join(f"{name}: {node['stage'] or 'nothing'}" for name, node in view.items())
            stuck = [f"{name}: {node['stuck']['cause']}" for name, node in view.items() if node["stuck"]]
            shown = "; ".join([shown, *stuck])
            self.say(shown)
            boots = {name: node["boot"] or {} for name, node in view.items()}
            return all(
                stage in [each["stage"] for each in boot.get("stages", [])] and boot.get("id") != earlier[name]
                for name, boot in boots.items()
            )

        try:
            wait_for(reached, seconds, f"both nodes reach {stage}", 5.0)
        except AssertionError as error:
            raise CommandError(f"{error}; last seen: {shown}") from None

    def apply(self) -> str:
        """`cluster apply`, then Salt's own highstate through `cluster salt`, which changes nothing."""
        first = self.laptop.cluster_json("apply", timeout=30 * MINUTE)["nodes"]
        # Salt's own 5 s of patience are short for emulated machines.
        salt = ("salt", "--", "-t", "300", "*")
        shown = self.laptop.cluster(*salt, "state.apply", "--out=json", "--static", timeout=30 * MINUTE)
        second = json.loads(shown)
        if set(second) != set(NODES):
            raise CommandError(f"state.apply was answered by {sorted(second)}")
        changed = {
            node: [name for name, state in states.items() if state["changes"] or not state["result"]]
            for node, states in second.items()
        }
        if any(changed.values()):
            raise CommandError(f"the second apply was not still: {json.dumps(changed)}")
        states = ", ".join(f"{node} {summary['states']} states" for node, summary in sorted(first.items()))
        return f"{states}; the second time none changed"

    def reprovision(self) -> str:
        """Another image becomes active, and `cluster reprovision --all` brings both nodes to it."""
        before = {name: node["boot"]["key"] for name, node in self._view().items()}
        digest = self._activate(images.SECOND)
        due = self.laptop.cluster_json("reprovision", "--due", timeout=3 * MINUTE)["due"]
        if set(due) != set(NODES):
            raise CommandError(f"due to be reprovisioned: {sorted(due)}; expected both nodes")
        found = self.laptop.cluster_json("reprovision", "--all", timeout=25 * MINUTE)
        self._expect_image(digest)
        same = [name for name, node in self._view().items() if node["boot"]["key"] == before[name]]
        if same:
            raise CommandError(f"{', '.join(same)} came back with the key of the boot before")
        look = ("cmd.run", f"command -v {images.ADDED}")
        seen = self.laptop.cluster("salt", "--", "-t", "120", "*", *look, timeout=3 * MINUTE)
        if seen.count(f"/{images.ADDED}") != len(NODES):
            raise CommandError(f"the nodes do not have what the image brings: {seen}")
        return str(found["summary"])

    def roll_back(self) -> str:
        """A broken image goes to the canary, which does not come back; it is rolled back by itself."""
        good = self.digests[images.SECOND]
        self._activate(images.BROKEN, "--canary", "node0", "--deadline", "4m")
        found = self.laptop.cluster_json("reprovision", "node0", timeout=40 * MINUTE, expected=(1,))
        if found["ok"] or found["restored"] != ["node0"]:
            raise CommandError(f"expected node0 brought back by a rollback: {found['summary']}")
        self._expect_image(good)
        shown = self.laptop.cluster_json("image", "list", timeout=3 * MINUTE)["images"]
        active = [image["digest"] for image in shown if "active" in image["roles"]]
        if active != [good] or any("canary" in role for image in shown for role in image["roles"]):
            raise CommandError(f"active after the rollback: {active}; expected {good} and no trial")
        return str(found["summary"])

    def _expect_image(self, digest: str) -> None:
        wrong = {name: node["boot"]["image"] for name, node in self._view().items() if node["boot"]["image"] != digest}
        if wrong:
            raise CommandError(f"expected image {digest}; seen: {json.dumps(wrong)}")

    def explain(self) -> str:
        """Return what the machines said last."""
        parts = [f"control: {self.control.output_text()[-1500:]}"] if hasattr(self, "control") else []
        parts += [f"{name}: {machine.output_text()[-1200:]}" for name, machine in self.nodes.items()]
        return "\n".join(parts)
