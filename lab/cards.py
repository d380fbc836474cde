"""Look at the NVIDIA cards of this machine: which there are, and what a lab with cards lacks here.

Nothing here changes a card: no clock, power limit or mode.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bottleneck.profile import Profile
from bottleneck.profile.types import EngineSpec
from lab.layout import LabError, cache_directory
from lab.requirements import TOOLS

# tool -> Debian package: what the nodes' states and probes run beside the lab's own tools.
NODE_TOOLS = {"iperf3": "iperf3"}
# For kernels that Triton and torch compile at the first start.
COMPILER = {"cc": "gcc"}
# Where a driver's libraries are when the loader is set to no other place: containers have them mounted there.
_DRIVER_FOLDERS = ("/usr/local/nvidia/lib64", "/usr/local/nvidia/lib")
_DRIVER_LIBRARIES = ("libcuda.so.1", "libnvidia-ml.so.1")
_QUERY = ("index", "name", "uuid", "memory.total", "memory.used", "driver_version")
_QUERY_SECONDS = 60.0
_TORCH_SECONDS = 180.0
# What a driver takes of an idle card.
_IDLE_BYTES = 2 * 2**30
_MEBIBYTE = 2**20


@dataclass(frozen=True)
class Card:
    """One card, as its driver lists it."""

    index: int
    name: str
    uuid: str
    memory_bytes: int
    used_bytes: int
    driver: str


@dataclass(frozen=True)
class Lack:
    """Something that a lab needs and this machine does not have.

    Attributes
    ----------
    what, seen, expected
        In words, for people.
    next
        What to do about it.
    """

    what: str
    seen: str
    expected: str
    next: str

    def __str__(self) -> str:
        return f"{self.what}: {self.seen}; expected {self.expected}. Next: {self.next}"


def machine_cards() -> list[Card]:
    """Return the cards that this machine's driver lists, none where there is no driver.

    Raises
    ------
    LabError
        When the driver's program is there and fails.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_QUERY_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise LabError(f"nvidia-smi does not answer within {_QUERY_SECONDS:.0f} s") from error
    if finished.returncode != 0:
        message = " ".join((finished.stdout + finished.stderr).split())
        if "No devices" in message:
            return []
        raise LabError(f"nvidia-smi failed with status {finished.returncode}: {message}")
    return read_cards(finished.stdout)


def read_cards(text: str) -> list[Card]:
    """Read what `nvidia-smi --query-gpu` prints, a line for each card, memory in MiB."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != len(_QUERY):
            continue
        index, name, uuid, total, used, driver = parts
        found.append(Card(int(index), name, uuid, int(total) * _MEBIBYTE, int(used) * _MEBIBYTE, driver))
    return found


def lacks(profile: Profile, cards: Sequence[Card], find: Mapping[str, str | None] | None = None) -> list[Lack]:
    """Return what this machine lacks for a lab of `profile`; empty when nothing.

    Parameters
    ----------
    cards
        Those of the machine.
    find
        Tool -> where it is; left out, they are looked for.
    """
    wanted = {**TOOLS, **NODE_TOOLS}
    uses_cards = any(node.host_cards for node in profile.nodes.values())
    if uses_cards:
        wanted |= COMPILER
    where = {tool: shutil.which(tool) for tool in wanted} if find is None else find
    found = list(_card_lacks(profile, cards)) if uses_cards else []
    missing = sorted({package for tool, package in wanted.items() if where.get(tool) is None})
    if missing:
        absent = ", ".join(sorted(tool for tool in wanted if where.get(tool) is None))
        found.append(
            Lack("programs", f"no {absent}", "them on the PATH", f"sudo apt-get install {' '.join(missing)}, or a pack")
        )
    return found


def machine_lacks(profile: Profile) -> list[Lack]:
    """Return what this machine lacks beside cards and programs: root, memory, an engine or a Python with torch."""
    found = []
    if os.geteuid() != 0:
        found.append(Lack("rights", f"user {os.geteuid()}", "root", "sudo -E make gpu-lab"))
    memory = sum(node.memory_bytes for node in profile.nodes.values())
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory > total:
        text = f"{total / 2**30:.0f} GiB"
        smaller = "a profile whose nodes have less memory: a copy of it, and --profile"
        found.append(Lack("main memory", text, f"{memory / 2**30:.0f} GiB for its nodes", smaller))
    for kind in dict.fromkeys(node.accelerator.kind for node in profile.nodes.values()):
        engine = profile.engines[kind]
        there = cache_directory() / Path(engine.directory()).relative_to("/var/cache/cluster") / ".complete"
        if not there.exists() and engine.shares_packages:
            found += _torch_lacks(engine.python)
    return found


def _card_lacks(profile: Profile, cards: Sequence[Card]) -> Iterator[Lack]:
    by_index = {card.index: card for card in cards}
    wanted = sum(len(node.host_cards) for node in profile.nodes.values())
    if not cards:
        driver = Path("/proc/driver/nvidia/version").exists()
        seen = "a driver, and no card that it lists" if driver else "no driver (nvidia-smi, /proc/driver/nvidia)"
        yield Lack("NVIDIA cards", seen, f"{wanted} cards", "make gpu-lab DEVICE=cpu rehearses it on processors")
        return
    if len(cards) < wanted:
        text = ", ".join(f"{card.index} {card.name}" for card in cards)
        yield Lack("NVIDIA cards", f"{len(cards)} ({text})", f"{wanted}", "a machine with more, or DEVICE=cpu")
    for name, node in profile.nodes.items():
        for index, accelerator in zip(node.host_cards, node.cards, strict=True):
            card = by_index.get(index)
            if card is None:
                if len(cards) >= wanted:
                    yield Lack(
                        f"card {index} of {name}", "no such index", "it in nvidia-smi", "host_cards of a profile"
                    )
                continue
            what = f"memory of card {index} ({card.name})"
            if card.memory_bytes < accelerator.memory_bytes:
                seen = f"{card.memory_bytes / 2**30:.1f} GiB"
                expected = f"{accelerator.memory_bytes / 2**30:.1f} GiB for a rank of {name}"
                yield Lack(what, seen, expected, "a profile with less memory: a copy of it, and --profile")
            elif card.used_bytes > _IDLE_BYTES:
                seen = f"{card.used_bytes / 2**30:.1f} GiB are in use already"
                yield Lack(
                    what, seen, "an idle card", "nvidia-smi names the processes; wait for them or ask their owner"
                )


def _torch_lacks(python: str) -> list[Lack]:
    program = shutil.which(python)
    mend = "a pack (cluster lab pack), or that Python with torch for CUDA"
    if program is None:
        return [Lack("the engine", f"not in the cache, and no {python}", f"{python} with torch", mend)]
    script = "import torch; assert torch.cuda.is_available(), 'torch sees no card'; print(torch.__version__)"
    try:
        finished = subprocess.run(
            [program, "-c", script], capture_output=True, text=True, check=False, timeout=_TORCH_SECONDS
        )
    except subprocess.TimeoutExpired:
        return [Lack("the engine", f"{program} does not import torch in {_TORCH_SECONDS:.0f} s", "torch", mend)]
    if finished.returncode != 0:
        last = (finished.stderr.strip().splitlines() or ["no word"])[-1]
        return [Lack("the engine", f"not in the cache, and {program}: {last}", "torch for CUDA there", mend)]
    return []


def driver_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return what a node needs of this process's environment to find the driver's libraries."""
    path = environment.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": path} if path else {}


def driver_mounts(
    engine: EngineSpec | None = None,
    listed: str | None = None,
    mountinfo: Path = Path("/proc/self/mountinfo"),
    environment: Mapping[str, str] = os.environ,
) -> list[str]:
    """Return the mount points beside `/` that a node with cards needs: its view of `/` does not reach there.

    They hold the driver's libraries, and the packages of the machine that the engine's environment sees.

    Parameters
    ----------
    engine
        The engine of the node, in the cache.
    listed
        What `ldconfig -p` prints; left out, it is asked.
    """
    if listed is None:
        program = shutil.which("ldconfig") or "/sbin/ldconfig"
        finished = subprocess.run([program, "-p"], capture_output=True, text=True, check=False)
        listed = finished.stdout
    folders = [*environment.get("LD_LIBRARY_PATH", "").split(":"), *_DRIVER_FOLDERS]
    found = [Path(folder) / name for folder in folders if folder for name in _DRIVER_LIBRARIES]
    found += [Path(line.rpartition("=> ")[2]) for line in listed.splitlines() if _named(line)]
    found += _shared_packages(engine) if engine and engine.shares_packages else []
    points = [line.split()[4] for line in mountinfo.read_text().splitlines()]
    above = {_mount_of(path.resolve(), points) for path in found if path.exists()}
    return sorted(above - {"/"})


def _shared_packages(engine: EngineSpec) -> list[Path]:
    """Return the folders of the machine's packages that an engine's environment in the cache names."""
    pattern = f"engines/{Path(engine.directory()).name}/lib/python3*/site-packages/machine.pth"
    files = cache_directory().glob(pattern)
    return [Path(line) for file in files for line in file.read_text(encoding="utf-8").split()]


def _named(line: str) -> bool:
    return line.split()[:1] in [[name] for name in _DRIVER_LIBRARIES]


def _mount_of(path: Path, points: Iterable[str]) -> str:
    return max((point for point in points if path.is_relative_to(point)), key=len, default="/")
