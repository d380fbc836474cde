"""Compile the portable kernels of vLLM's Intel wheel for the card of a profile; no card is needed.

`vllm-xpu-kernels` carries machine code for newer cards, and beside each group of kernels one SPIR-V module, which
Intel's driver compiles at run time for any other card. Here each of those modules is taken out of the wheel and
compiled by the same compiler ahead of time (`ocloc` of Debian), once as the driver does by default, once with doubles
emulated. What does not compile will fail on the card the same way.

The wheel is the one that the lock file of the profile's engine pins, by its digest there. `ocloc` is run in a
root folder made by mmdebstrap (root, about 700 MB, a minute); both are kept in the cache folder.

    python bench/xpu_kernels.py --output kernels.json
    python bench/xpu_kernels.py --library _C --output kernels.json
    python bench/xpu_kernels.py --table kernels.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bottleneck.profile import find_profile, load_profile
from bottleneck.profile.paths import lock_file
from cli.doctor.chips import table

PACKAGE = "vllm-xpu-kernels"
ARCHIVE, MEMBER_BYTES = b"!<arch>\n", 60
PORTABLE = "generic_ir"
SPIRV_MAGIC = b"\x03\x02\x23\x07"
# Section of an ELF container of Intel's compiler that holds SPIR-V (ocloc: SHT_OPENCL_SPIRV).
SPIRV_SECTION = 0xFF000009
ENTRY_POINT = 15
DEBIAN_PACKAGES = ("intel-ocloc", "libigc2", "libigdfcl2")
EMULATION = "-ze-fp64-gen-emu"
SECONDS = 900
# Of the root folder, for what is compiled.
FOLDER = "kernels"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cluster/xpu-kernels"
# Written for cards with instructions that the others lack (2D block loads, larger matrix units); vLLM takes them on
# those cards alone, and compiling them for another says nothing.
OTHER_CARDS = re.compile(r"_xe_[23]\b")
# Which operations of a library a dense model in 4 bit needs (the step of Mistral-Small): everything, unless said here.
NOT_FOR_MISTRAL = (
    (
        re.compile(r"Topk?Topp|top_p|top_k_only|Sampler", re.IGNORECASE),
        "sampling by top-p and top-k; greedy needs none",
    ),
    (re.compile(r"moe|grouped_gemm|topk_(softmax|sigmoid)|grouped_topk|expert", re.IGNORECASE), "a mixture's experts"),
    (re.compile(r"gdn|gated_delta|mamba|causal_conv", re.IGNORECASE), "linear attention"),
    (re.compile(r"mla_|indexer|lightning|mqa_logits", re.IGNORECASE), "latent or sparse attention"),
)


@dataclass(frozen=True)
class Module:
    """One portable module.

    Attributes
    ----------
    entries
        Names of its kernels, mangled.
    options
        What the wheel's makers gave the compiler.
    """

    library: str
    index: int
    code: bytes
    entries: tuple[str, ...]
    options: str


@dataclass(frozen=True)
class Outcome:
    """The result of one module."""

    library: str
    index: int
    bytes: int
    kernels: int
    plain: bool
    emulated: bool | None
    reason: str
    needed: str
    seconds: float
    entries: tuple[str, ...]


def pinned(lock: Path, package: str = PACKAGE) -> tuple[str, str]:
    """Return version and SHA-256 of the wheel that a lock file pins, one for all Pythons."""
    text = lock.read_text(encoding="utf-8")
    found = re.search(rf"^{package}==(\S+) \\\n    --hash=sha256:([0-9a-f]{{64}})$", text, re.MULTILINE)
    if found is None:
        raise SystemExit(f"{lock}: no {package}==VERSION with one digest; next: setup/lock {lock}")
    return found[1], found[2]


def wheel_of(version: str, digest: str, cache: Path, package: str = PACKAGE) -> Path:
    """Return the wheel from the cache, or from the package index; its digest is the lock file's."""
    cache.mkdir(parents=True, exist_ok=True)
    for path in cache.glob(f"{package.replace('-', '_')}-{version}-*.whl"):
        if hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            return path
    print(f"downloading {package} {version} ...", file=sys.stderr, flush=True)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "download", "--no-deps"]
    wanted = cache / "wanted.txt"
    wanted.write_text(f"{package}=={version} --hash=sha256:{digest}\n", encoding="utf-8")
    options = ["--require-hashes", "--only-binary", ":all:", "--platform", "manylinux_2_28_x86_64"]
    subprocess.run([*pip, *options, "-d", str(cache), "-r", str(wanted)], check=True)
    return next(cache.glob(f"{package.replace('-', '_')}-{version}-*.whl"))


def root_folder(suite: str, mirror: str, cache: Path) -> Path:
    """Return a root folder of a Debian release with ocloc and its compiler; made once."""
    root = cache / f"ocloc-{suite}"
    # A link into the root folder's own /etc, which leads nowhere from here.
    if (root / "usr/bin/ocloc").is_symlink():
        return root
    if os.geteuid() != 0 or not shutil.which("mmdebstrap"):
        raise SystemExit(f"{root}: making it takes root and mmdebstrap: apt-get install mmdebstrap")
    print(f"making {root} ...", file=sys.stderr, flush=True)
    partial = root.with_name(root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    # The archive may be a snapshot, whose lists have run out.
    options = ["--variant=minbase", f"--include={','.join(DEBIAN_PACKAGES)}"]
    command = ["mmdebstrap", *options, '--aptopt=Acquire::Check-Valid-Until "false"', suite, str(partial), mirror]
    subprocess.run(command, check=True)
    partial.rename(root)
    return root


def members(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Return name and content of every member of every archive inside a library."""
    at = content.find(ARCHIVE)
    while at >= 0:
        position = at + len(ARCHIVE)
        while content[position + 58 : position + MEMBER_BYTES] == b"`\n":
            name = content[position : position + 16].decode("ascii", "replace").strip().rstrip("/")
            size = int(content[position + 48 : position + 58])
            position += MEMBER_BYTES
            yield name, content[position : position + size]
            position += size + size % 2
        at = content.find(ARCHIVE, position)


def spirv_of(container: bytes) -> tuple[bytes, str]:
    """Return the SPIR-V of a module's ELF container, and the compiler's options beside it.

    Raises
    ------
    ValueError
        When there is none in it.
    """
    if container.startswith(SPIRV_MAGIC):
        return container, ""
    if container[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"begins with {container[:6]!r}; expected a little-endian ELF of 64 bit or SPIR-V")
    (offset,) = struct.unpack_from("<Q", container, 0x28)
    size, count = struct.unpack_from("<HH", container, 0x3A)
    code, options = b"", ""
    for index in range(count):
        _, kind, _, _, start, length, *_ = struct.unpack_from("<IIQQQQIIQQ", container, offset + index * size)
        part = container[start : start + length]
        if kind == SPIRV_SECTION or part.startswith(SPIRV_MAGIC):
            code = part
        elif part.startswith(b"-"):
            options = part.rstrip(b"\0").decode("ascii", "replace")
    if not code:
        raise ValueError("no section holds SPIR-V")
    return code, options


def entry_points(code: bytes) -> tuple[str, ...]:
    """Return the names of a module's kernels: its OpEntryPoint instructions (SPIR-V specification, 3.49.2)."""
    words = struct.unpack(f"<{len(code) // 4}I", code[: len(code) // 4 * 4])
    found, position = [], 5
    while position < len(words):
        length, operation = words[position] >> 16, words[position] & 0xFFFF
        if not length:
            break
        if operation == ENTRY_POINT:
            text = struct.pack(f"<{length - 3}I", *words[position + 3 : position + length])
            found.append(text.split(b"\0", 1)[0].decode("utf-8", "replace"))
        position += length
    return tuple(found)


def modules(wheel: Path, libraries: Sequence[str] = ()) -> Iterator[Module]:
    """Return the portable modules of a wheel's libraries, one library after another."""
    with zipfile.ZipFile(wheel) as archive:
        for path in sorted(name for name in archive.namelist() if name.endswith(".so")):
            library = Path(path).name.removesuffix(".so").removesuffix(".abi3")
            if libraries and library not in libraries:
                continue
            portable = (content for name, content in members(archive.read(path)) if name == PORTABLE)
            for index, container in enumerate(portable):
                code, options = spirv_of(container)
                yield Module(library, index, code, entry_points(code), options)


class Compiles(Protocol):
    """The compilers of a module."""

    def compile(self, module: Module, further: str = "") -> tuple[bool, str]:
        """Return whether a module compiles, and what the compiler said when not."""


class Compiler:
    """ocloc of a root folder, for one device."""

    def __init__(self, root: Path, device: str) -> None:
        self._root, self._device = root, device
        (root / FOLDER).mkdir(exist_ok=True)

    def versions(self) -> dict[str, str]:
        """Return the Debian versions of the compiler's packages."""
        query = ["dpkg-query", f"--admindir={self._root}/var/lib/dpkg", "-W", "-f", "${Package} ${Version}\n"]
        listed = subprocess.run([*query, *DEBIAN_PACKAGES], capture_output=True, text=True, check=True).stdout
        return dict(line.split(" ", 1) for line in listed.splitlines())

    def compile(self, module: Module, further: str = "") -> tuple[bool, str]:
        """Return whether a module compiles, and what the compiler said when not."""
        source = self._root / FOLDER / "module.spv"
        source.write_bytes(module.code)
        options = " ".join(part for part in (module.options, further) if part)
        command = ["chroot", str(self._root), "ocloc", "compile", "-spirv_input", "-file", f"/{FOLDER}/module.spv"]
        command += ["-device", self._device, "-out_dir", f"/{FOLDER}/out", *(["-options", options] if options else [])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return False, f"not compiled within {SECONDS} s"
        finally:
            source.unlink()
            shutil.rmtree(self._root / FOLDER / "out", ignore_errors=True)
        return done.returncode == 0, reason_of(done.stdout + done.stderr)


def reason_of(text: str) -> str:
    """Return the compiler's own sentence about a failure, without the name of the kernel that it is about."""
    for line in text.splitlines():
        found = re.search(r"error: (?:in kernel '[^']*': )?(.*)", line)
        if found:
            return re.sub(r"\s+", " ", found[1]).strip()[:160]
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Command was:")]
    return lines[-1][:160] if lines else ""


def needed_by_mistral(module: Module) -> str:
    """Return `yes`, or what a module's kernels are for when a dense model in 4 bit does without them."""
    names = " ".join((module.library, *module.entries))
    return next((why for pattern, why in NOT_FOR_MISTRAL if pattern.search(names)), "yes")


def outcome(module: Module, compiler: Compiles) -> Outcome:
    """Compile one module; with doubles emulated only where it does not compile without."""
    started = time.monotonic()
    plain, reason = compiler.compile(module)
    emulated, second = (None, "") if plain else compiler.compile(module, EMULATION)
    if emulated is False and second != reason:
        reason = f"{reason}; emulated: {second}"
    return Outcome(
        module.library,
        module.index,
        len(module.code),
        len(module.entries),
        plain,
        emulated,
        "" if plain else reason,
        needed_by_mistral(module),
        round(time.monotonic() - started, 1),
        () if plain else module.entries[:8],
    )


def earlier(path: Path | None, document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the modules that an earlier result has of the same wheel, card and compiler."""
    if path is None or not path.exists():
        return []
    before = json.loads(path.read_text(encoding="utf-8"))
    same = all(before.get(key) == value for key, value in document.items() if key != "modules")
    return list(before["modules"]) if same else []


def markdown(document: Mapping[str, Any]) -> str:
    """Return the result as the tables of the docs."""
    rows = document["modules"]
    lines = ["| library | modules | compile | with doubles emulated | fail |", "|---|---|---|---|---|"]
    for library in dict.fromkeys(row["library"] for row in rows):
        own = [row for row in rows if row["library"] == library]
        plain, emulated = sum(row["plain"] for row in own), sum(bool(row["emulated"]) for row in own)
        lines.append(f"| `{library}` | {len(own)} | {plain} | {plain + emulated} | {len(own) - plain - emulated} |")
    lines += ["", "| module | kernels | reason | emulated | needed by Mistral |", "|---|---|---|---|---|"]
    for row in rows:
        if not row["plain"]:
            second = "compiles" if row["emulated"] else "fails"
            cells = (f"`{row['library']}` {row['index']}", row["kernels"], row["reason"], second, row["needed"])
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line; compile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="arc-a770/v0.1")
    parser.add_argument("--cache", type=Path, default=CACHE, help="for the wheel and the root folder")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian")
    parser.add_argument("--suite", default="forky", help="the Debian release of ocloc")
    parser.add_argument("--device", help="ocloc's name of the card; left out, that of the profile's chip")
    parser.add_argument("--library", action="append", default=[], help="this library alone; may be repeated")
    parser.add_argument("--all", action="store_true", help="those for newer cards alone as well")
    parser.add_argument("--output", type=Path, help="JSON, written after every module; an earlier one is gone on with")
    parser.add_argument(
        "--table", type=Path, metavar="JSON", help="print the tables of an earlier result, compile nothing"
    )
    options = parser.parse_args()
    if options.table:
        print(markdown(json.loads(options.table.read_text(encoding="utf-8"))))
        return
    profile = load_profile(find_profile(options.profile))
    node = next(iter(profile.nodes))
    engine, accelerator = profile.engine_of(node), profile.nodes[node].accelerator
    if engine.lock is None:
        raise SystemExit(f"{engine.kind}: the engine map has no lock file for it")
    device = options.device or next(
        (chip.compiler_target for chip in table().chips if chip.name in accelerator.model and chip.compiler_target),
        None,
    )
    if device is None:
        raise SystemExit(f"{accelerator.model}: cli/doctor/chips.yaml has no compiler_target for it; give --device")
    version, digest = pinned(lock_file(engine.lock))
    wheel = wheel_of(version, digest, options.cache)
    compiler = Compiler(root_folder(options.suite, options.mirror, options.cache), device)
    document: dict[str, Any] = {
        "schema": 1,
        "wheel": wheel.name,
        "sha256": digest,
        "device": device,
        "compiler": compiler.versions(),
        "emulation": EMULATION,
        "modules": [],
    }
    done = earlier(options.output, document)
    document["modules"] = done
    known = {(row["library"], row["index"]) for row in done}
    for module in modules(wheel, options.library):
        if OTHER_CARDS.search(module.library) and not (options.all or options.library):
            continue
        if (module.library, module.index) in known:
            continue
        found = outcome(module, compiler)
        document["modules"].append(asdict(found))
        word = "compiles" if found.plain else "compiles emulated" if found.emulated else "fails"
        print(
            f"{found.library} {found.index}: {word} ({found.seconds:.0f} s) {found.reason}", file=sys.stderr, flush=True
        )
        if options.output:
            options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(markdown(document))


if __name__ == "__main__":
    main()
