"""`python -m rehearsal --image PROFILE`: boot the profile's image in a virtual machine, and look at what is in it.

The machine is netbooted as a board is, by UEFI, from a control node in a namespace of this machine, and has no
accelerator: what is looked at is data (`image_checks.yaml`), and what `cluster doctor` says of the node. Layers with
what only the checks need go over those of the image.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, TypeAdapter

from bench.xpu_kernels import pinned, wheel_of
from bottleneck.profile import find_profile, load_profile
from bottleneck.profile.paths import lock_file
from bottleneck.profile.types import Profile
from bottleneck.profile.value_types import Section
from netboot.boot import progress_report
from netboot.boot.rendering import advertised_address
from netboot.boot.settings import Settings
from netboot.image.operations import recipe_for
from netboot.image.recipe import LayerSource, Recipe
from netboot.image.store import Store
from rehearsal.control_node import ControlNode
from rehearsal.debian import CACHE
from rehearsal.images import build_kept
from rehearsal.laptop import CommandError
from rehearsal.machines import Machine, namespace, wait_for
from rehearsal.table import Stages

CHECKS = Path(__file__).with_name("image_checks.yaml")
BRIDGE = "brimage"
MEMORY_MIB = 3072
BOOT_SECONDS, ANSWER_SECONDS = 900.0, 600.0
# Where what only the checks need is on the node.
PLACE = "/opt/cluster/check"
KERNEL_LINE = ("console=ttyS0", "no_timer_check", "panic=5")
ORDER = ("image", "boot", "modules", "checks", "doctor")
_EVIDENCE = 220


class ImageCheck(Section):
    """A command of the node, and what its output has to match."""

    what: str
    command: str
    expected: str


class Wheel(Section):
    """A package of a lock file, whose Python part is put on the node."""

    lock: str
    package: str


class ImageChecks(Section):
    """Checks of the image of one profile."""

    packages: list[str] = Field(default=[])
    wheel: Wheel | None = None
    checks: list[ImageCheck]
    doctor: dict[str, str] = Field(default={})


def load_checks(path: Path = CHECKS) -> dict[str, ImageChecks]:
    """Return name of a profile -> what its image has to have."""
    return TypeAdapter(dict[str, ImageChecks]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))


def python_part(wheel: Wheel) -> Path:
    """Return a folder with the Python files of a wheel, kept by the wheel's digest."""
    version, digest = pinned(lock_file(wheel.lock), wheel.package)
    folder = CACHE / f"wheel-{digest[:16]}"
    if not folder.is_dir():
        partial = CACHE / f"wheel-{digest[:16]}.partial-{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        with zipfile.ZipFile(wheel_of(version, digest, CACHE / "wheels", wheel.package)) as archive:
            archive.extractall(partial, [name for name in archive.namelist() if name.endswith(".py")])
        partial.rename(folder)
    return folder


def bootable(profile: Path, folder: Path) -> Path:
    """Write the profile with the virtual machine's interface and MAC addresses, and return its path."""
    document: dict[str, Any] = yaml.safe_load(profile.read_text(encoding="utf-8"))
    document["control"]["interface"] = BRIDGE
    for number, node in enumerate(document["nodes"].values()):
        node["links"] = {name: dict(link) for name, link in node["links"].items()}
        node["links"][document["control"]["network"]]["mac"] = f"02:97:03:00:00:{0x10 + number:02x}"
    boot = document["boot"]
    boot["kernel_line"] = [*boot.get("kernel_line", []), *KERNEL_LINE]
    stages = ("script", "kernel", "initramfs", "image", "systemd", "minion")
    boot["deadlines"] = dict.fromkeys(stages, "15 min")
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


class ImageBoot:
    """A node of a profile in a virtual machine, booted from the profile's image.

    Parameters
    ----------
    folder
        For what the run writes.
    log
        Everything that a command printed.
    """

    def __init__(self, profile: str, folder: Path, stages: Stages, log: Path) -> None:
        self.folder, self.stages, self.log = folder, stages, log
        self.given = find_profile(profile)
        self.path = bootable(self.given, folder)
        self.profile: Profile = load_profile(self.path)
        self.node = next(iter(self.profile.nodes))
        known = load_checks()
        if self.profile.name not in known:
            raise CommandError(f"{CHECKS.name} has no {self.profile.name}; expected one of {', '.join(known)}")
        self.asked = known[self.profile.name]
        self.store = Store(CACHE / "images")
        self.control: ControlNode
        self.machine: Machine

    def recipe(self) -> Recipe:
        """Return the recipe of `cluster image build`, and over its layers those of the checks."""
        recipe = recipe_for(load_profile(self.given)).model_copy(update={"accept_expired": True})
        layers = list(recipe.layers)
        if self.asked.packages:
            layers.append(LayerSource(name="check-packages", packages=self.asked.packages))
        if self.asked.wheel:
            layers.append(LayerSource(name="check", directory=str(python_part(self.asked.wheel)), prefix=PLACE))
        return recipe.model_copy(update={"layers": layers})

    def build(self) -> str:
        """Build the image, unless it is kept, and make it active."""
        manifest = build_kept(self.store, self.recipe(), self.profile.name, "the", self.stages.say)
        self.store.activate(self.profile.name, manifest.digest)
        root = manifest.files["root.squashfs"]
        sizes = [f"root {root.bytes / 1e6:.0f} MB {root.sha256[:8]}"]
        sizes += [f"{layer.name} {layer.bytes / 1e6:.0f} MB {layer.sha256[:8]}" for layer in manifest.layers]
        return f"{manifest.suite}, kernel {manifest.kernel}; {', '.join(sizes)}"

    def boot(self) -> str:
        """Netboot one node; it enrols and answers."""
        self.control.start()
        wait_for(self.control.listens, ANSWER_SECONDS, "the boot service listens")
        started = time.monotonic()
        self.machine.power_on()
        try:
            wait_for(self._enrolled, BOOT_SECONDS, f"{self.node} enrols", 1.0)
            wait_for(self._answers, ANSWER_SECONDS, f"{self.node} answers", 1.0)
        except AssertionError as error:
            raise CommandError(f"{error}; its console ends with {self.machine.output_text()[-600:]!r}") from error
        boot = self.control.record().nodes[self.node].boot
        assert boot
        stages = [f"{span.stage} {span.end - boot.began:.0f}" for span in progress_report.trace(boot)]
        return f"answers after {time.monotonic() - started:.0f} s; stages end at {', '.join(stages)} s"

    def _enrolled(self) -> bool:
        if self.machine.gave_up():
            self.machine.power_cycle()
        state = self.control.record().nodes.get(self.node)
        return state is not None and state.boot is not None and bool(state.boot.enrolled_key)

    def _answers(self) -> bool:
        return self.control.salt(self.node, "test.ping", timeout=10).get(self.node) is True

    def modules(self) -> str:
        """The node takes the control node's modules and its part of the profile."""
        taken = self.control.salt(self.node, "saltutil.sync_all", timeout=ANSWER_SECONDS).get(self.node)
        if not isinstance(taken, dict) or not taken.get("modules"):
            raise CommandError(f"the node took {taken!r}; expected the modules of _modules/")
        self.control.salt(self.node, "saltutil.refresh_pillar", "wait=True", timeout=ANSWER_SECONDS)
        return f"{len(taken['modules'])} modules"

    def checks(self) -> str:
        """Every check of the file, one after the other; raise when one is not well."""
        bad = []
        for check in self.asked.checks:
            started = time.monotonic()
            answer = self.control.salt(self.node, "cmd.run_all", check.command, timeout=ANSWER_SECONDS).get(self.node)
            seen = answer if isinstance(answer, dict) else {"stdout": str(answer), "stderr": ""}
            text = "\n".join(part for part in (seen["stdout"].strip(), seen["stderr"].strip()) if part)
            self._note(f"{check.what}: {check.command}", text)
            well = re.search(check.expected, text) is not None
            bad += [] if well else [check.what]
            mark = "ok" if well else f"expected {check.expected}"
            shown = " ".join(text.split())[-_EVIDENCE:]
            self.stages.say(f"{check.what} ({time.monotonic() - started:.0f} s): {shown}; {mark}")
        if bad:
            raise CommandError(f"not as expected: {'; '.join(bad)}")
        return f"{len(self.asked.checks)} of {len(self.asked.checks)}"

    def doctor(self) -> str:
        """`cluster doctor` on the control node: what it says of the node."""
        start = "import sys; sys.argv[0] = 'cluster'; from cli.main import app; app()"
        salt = f"SALT_CONFIG_DIR={self.control.folder / 'salt'}"
        argv = ["env", salt, "CLUSTER_CONTROL=here", sys.executable, "-c", start, "doctor"]
        done = self.control.network.run(
            *argv, "--profile", str(self.path), "--json", check=False, timeout=ANSWER_SECONDS
        )
        self._note("cluster doctor --json", done.stdout + done.stderr)
        found = [each for each in json.loads(done.stdout)["checks"] if each["place"] == self.node]
        for each in found:
            mend = f"; mend: {each['mend']}" if each["mend"] else ""
            self.stages.say(f"{each['what']} {each['status']}: {each['evidence']}{mend}")
        seen = {each["what"]: each["status"] for each in found}
        wrong = [
            f"{what} is {seen.get(what)}" for what, status in self.asked.doctor.items() if seen.get(what) != status
        ]
        if wrong:
            raise CommandError(f"{'; '.join(wrong)}; expected {json.dumps(self.asked.doctor)}")
        return ", ".join(f"{what} {status}" for what, status in seen.items())

    def _note(self, title: str, text: str) -> None:
        with self.log.open("a") as log:
            log.write(f"\n$ {title}\n{text}\n")


def run(profile: str, folder: Path, log: Path) -> int:
    """Build, boot and look; return the exit status."""
    stages = Stages(None, ORDER)
    work = ImageBoot(profile, folder, stages, log)
    settings = Settings.of(work.profile)
    started = time.monotonic()
    with namespace(BRIDGE, [f"{settings.address}/24", advertised_address(settings)]) as network:
        mac = settings.nodes[work.node].mac
        work.control = ControlNode(network, folder, work.path, work.store.root)
        work.machine = Machine(network, folder, work.node, mac, uefi=True, memory_mib=MEMORY_MIB, processor="max")
        try:
            going = True
            for name, title, step in (
                ("image", "the profile's image (kept)", work.build),
                ("boot", "a node netboots, enrols, answers", work.boot),
                ("modules", "it takes modules and pillar", work.modules),
                ("checks", "what the image holds", work.checks),
                ("doctor", "cluster doctor", work.doctor),
            ):
                # What the doctor says is worth having when a check was not well.
                going = stages.do(name, title, step) or (name == "checks" and going)
                if not going:
                    break
        finally:
            work.machine.power_off()
            with log.open("a") as file:
                file.write(f"\n--- the console's end\n{work.machine.output_text()[-3000:]}\n")
    stages.show(time.monotonic() - started, log)
    return 1 if stages.failed else 0
