"""
Install an inference engine into a folder of its own: a virtual environment, Debian packages, an archive.

The directory's name carries the digest of what is in it, so an environment is made
once and never changed. Several nodes may share the folder that holds it (the lab's
nodes do): a lock lets one of them install while the others wait.
"""

import glob
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import engine_archive
import engine_environment
import node_commands
import node_files
import salt.utils.files

if TYPE_CHECKING:
    from loader_dunders import __pillar__

MARKER = ".complete"
# Links to engines that deployments name, by their entry of the engine map.
FURTHER = "/opt/cluster/further-engines"
# The firewall's table with what this module lets in, and where it is kept. From which ports the kernel takes one that
# nobody chose.
GUARD_TABLE, GUARD_FILE = "cluster_peers", "/etc/cluster/peers.nft"
EPHEMERAL_PORTS = "/proc/sys/net/ipv4/ip_local_port_range"
# Of a root folder: what is installed in it.
DEBIAN_DATABASE = "var/lib/dpkg"
# Where Debian packages have their programs.
PROGRAM_FOLDERS = ("/usr/bin/", "/usr/sbin/", "/usr/libexec/")
INSTALL_SECONDS = 3600.0
VERSION_SECONDS = 60.0
EVIDENCE_CHARACTERS = 200


def __virtual__() -> str | tuple[bool, str]:
    return "engine" if sys.platform == "linux" else (False, "engines are installed on Linux")


def installed(directory: str, kind: str | None = None) -> bool:
    """
    Return whether the environment at a directory is complete, and this node configured for it.

    CLI Example:

    .. code-block:: bash

        salt '*' engine.installed /opt/cluster/engine

    kind
        the engine map's entry, of an engine that a deployment names beside that of the accelerator
    """
    if kind is not None and os.path.realpath(os.path.join(FURTHER, kind)) != os.path.realpath(directory):
        return False
    return os.path.exists(os.path.join(directory, MARKER))


def version(directory: str, packages: Sequence[str]) -> dict[str, str]:
    """
    Return the versions of those packages that are installed there, in the order they are asked for.

    CLI Example:

    .. code-block:: bash

        salt '*' engine.version /opt/cluster/engine '["torch"]'

    directory
        the engine's environment, its root folder, or the folder with links to what the node itself has
    packages
        names of distributions; in a root folder and on the node, of Debian packages
    """
    digest = engine_archive.digest_in(directory)
    if digest:
        # It has no other version than itself.
        return {packages[0]: f"sha256:{digest}"} if packages else {}
    own = os.path.join(directory, DEBIAN_DATABASE)
    database = own if os.path.isdir(own) else os.path.join("/", DEBIAN_DATABASE)
    if not os.path.exists(os.path.join(directory, "bin/python")):
        listed = node_commands.output_of(
            ["dpkg-query", f"--admindir={database}", "--show", "--showformat", "${Package} ${Version}\n"],
            timeout=VERSION_SECONDS,
            name=f"{directory} (versions)",
        )
        installed_there = dict(line.split(" ", 1) for line in listed.splitlines() if " " in line)
        return {name: installed_there[name] for name in packages if name in installed_there}
    script = (
        "import json, sys, importlib.metadata as m\n"
        "found = {}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    python = os.path.join(directory, "bin/python")
    found: dict[str, str] = json.loads(
        node_commands.output_of([python, "-c", script, *packages], timeout=VERSION_SECONDS, name=f"{python} (versions)")
    )
    return found


def install(directory: str, requirements: str | None, engine: Mapping[str, Any]) -> bool:
    """
    Make the environment unless it is complete; return whether anything was done.

    CLI Example:

    .. code-block:: bash

        salt node0 engine.install /var/cache/cluster/engines/cpu-1 /etc/cluster/lock.txt '{"python": "python3.11"}'

    directory
        where the environment is to be; appears complete or not at all
    requirements
        lock file: every package by version and digests; None for what has none
    engine
        the accelerator's entry of the engine map
    """
    os.makedirs(os.path.dirname(directory), exist_ok=True)
    with salt.utils.files.flopen(directory + ".lock", "w"):
        if installed(directory):
            return False
        shutil.rmtree(directory, ignore_errors=True)
        try:
            if engine.get("root_folder"):
                _make_root(directory, engine["root_folder"])
            elif engine.get("archive"):
                engine_archive.unpack(directory, engine["archive"])
            elif engine.get("node_packages"):
                _link_packages(directory, engine["node_packages"])
            elif requirements:
                _make(directory, requirements, engine)
            else:
                raise RuntimeError(
                    f"{engine['kind']} has no lock file, root folder, archive or packages in the engine map"
                )
            node_files.write_text(os.path.join(directory, MARKER), "\n")
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
    return True


def _make(directory: str, requirements: str, engine: Mapping[str, Any]) -> None:
    python = shutil.which(engine["python"]) or sys.executable
    _run([python, "-m", "venv", directory])
    if engine.get("shares_packages"):
        _share_packages(python, directory)
    binary = [
        os.path.join(directory, "bin/python"),
        *("-m", "pip", "-qq", "--disable-pip-version-check"),
        *("install", "--no-deps", "--no-compile", "--only-binary", ":all:"),
    ]
    pip = [*binary, "--require-hashes", "-r", requirements]
    fallback = engine.get("fallback_index")
    try:
        _run(pip)
    except RuntimeError:
        # An index that cannot be reached costs pip minutes, so it is asked only when the
        # default one has no build of the package.
        if not fallback:
            raise
        # And for its own package alone: asked for all, it could answer for any of their names.
        wanted = os.path.join(directory, "fallback.txt")
        node_files.write_text(wanted, _locked(requirements, fallback["package"]))
        _run([*binary, "--require-hashes", "--index-url", fallback["url"], "-r", wanted])
        _run(pip)
    for index in engine.get("indexes", []):
        _install_from(index, binary, directory)
    build = engine.get("source_build")
    if build:
        _build(directory, build)
    alias = engine.get("alias_distribution")
    if alias:
        _alias_distribution(directory, alias["name"], alias["version"])


def _locked(requirements: str, package: str) -> str:
    """Return what a lock file has for a package: its line with those of its digests."""
    with open(requirements, encoding="utf-8") as file:
        lines = file.read().replace("\\\n", " ").splitlines()
    found = [line for line in lines if line.split()[:1] == [package]]
    if not found:
        raise RuntimeError(f"{requirements} has no {package}, for which the engine map names an index of its own")
    return f"{found[0]}\n"


def _install_from(index: Mapping[str, Any], binary: Sequence[str], directory: str) -> None:
    """Install what is on an index of its own: from there alone, and nothing else from there."""
    address, *others = index["urls"]
    further = [f"--extra-index-url={url}" for url in others]
    # One by one: with a digest pip wants one of every package.
    for package, digest in index["packages"].items():
        wanted = os.path.join(directory, "of-an-index.txt")
        node_files.write_text(wanted, f"{package} --hash=sha256:{digest}\n" if digest else f"{package}\n")
        _run([*binary, "--index-url", address, *further, "-r", wanted])


def _share_packages(python: str, directory: str) -> None:
    """Let an environment see the packages of the interpreter it was made with, after its own.

    Not `--system-site-packages`: that means the interpreter's base, and torch may be in an environment itself.
    """
    script = "import sysconfig; print(*dict.fromkeys(sysconfig.get_paths()[name] for name in ('purelib', 'platlib')))"
    printed = node_commands.output_of([python, "-c", script], timeout=VERSION_SECONDS, name=f"{python} (its packages)")
    (site_packages,) = glob.glob(os.path.join(directory, "lib/python3*/site-packages"))
    node_files.write_text(os.path.join(site_packages, "machine.pth"), "\n".join(printed.split()) + "\n")


def _build(directory: str, build: Mapping[str, Any]) -> None:
    """Build a package from its source, with the environment's own torch and tools, and install it."""
    wanted = os.path.join(directory, "source-build.txt")
    node_files.write_text(wanted, f"{build['package']} @ {build['url']} --hash=sha256:{build['sha256']}\n")
    python = os.path.join(directory, "bin/python")
    pip = [python, "-m", "pip", "-qq", "--disable-pip-version-check", "install", "--no-deps", "--no-compile"]
    _run(
        [*pip, "--no-build-isolation", "--require-hashes", "-r", wanted],
        # The tools that it is built with are programs of the environment.
        {**os.environ, "PATH": f"{directory}/bin:{os.environ.get('PATH', os.defpath)}", **build["environment"]},
    )


def checks() -> list[dict[str, str | bool]]:
    """
    Look at what the engines of this node say should be looked at, of those that are installed.

    CLI Example:

    .. code-block:: bash

        salt '*' engine.checks

    Returns for each check the engine map's entry (``kind``), ``what`` was looked at, whether it ``is_well``, the
    ``evidence``, and what to do ``next`` when it is not.
    """
    found: list[dict[str, str | bool]] = []
    for engine in [__pillar__["engine"], *__pillar__["engines"]]:
        if not installed(engine["directory"]):
            continue
        for check in engine["checks"]:
            program, *argv = check["command"]
            try:
                printed = node_commands.output_of(
                    engine_environment.command(engine, program, argv), timeout=VERSION_SECONDS, name=program
                )
            except RuntimeError as error:
                printed = str(error)
            seen = " ".join(printed.split())
            found.append(
                {
                    "kind": engine["kind"],
                    "what": check["what"],
                    "is_well": re.search(check["expected"], printed) is not None,
                    "evidence": f"{seen[:EVIDENCE_CHARACTERS] or 'nothing'}; expected {check['expected']}",
                    "next": check["next"],
                }
            )
    return found


def guard(guards: Sequence[Mapping[str, Any]], test: bool = False) -> bool:
    """
    Let only those connect to the ports of this node's worker that have to; return whether that is new.

    CLI Example:

    .. code-block:: bash

        salt node1 engine.guard '[{"ports": [50052], "ephemeral": false, "allowed": ["10.77.1.10"]}]'

    guards
        ``ports``, whether those that the kernel gives by itself count (``ephemeral``), and the addresses or networks
        that are ``allowed``; this node itself always is. What it does not name is not touched; an empty list undoes all
    test
        change nothing
    """
    table = f"table inet {GUARD_TABLE}"
    rules = "".join(_rules(each) for each in guards)
    chain = '        type filter hook input priority filter; policy accept;\n        iifname "lo" accept\n'
    made = f"{table} {{\n    chain input {{\n{chain}{rules}    }}\n}}\n" if guards else ""
    text = f"{table}\ndelete {table}\n{made}"
    there = subprocess.run(["nft", "list", "table", "inet", GUARD_TABLE], capture_output=True, check=False)
    if (there.returncode == 0) == bool(guards) and (not guards or _text(GUARD_FILE) == text):
        return False
    if not test:
        os.makedirs(os.path.dirname(GUARD_FILE), exist_ok=True)
        node_files.write_text(GUARD_FILE, text)
        node_commands.output_of(
            ["nft", "--file", GUARD_FILE], timeout=VERSION_SECONDS, name="nft (guard of a worker's ports)"
        )
    return True


def _rules(guarded: Mapping[str, Any]) -> str:
    ports = [str(int(port)) for port in guarded["ports"]]
    if guarded["ephemeral"]:
        first, last = (_text(EPHEMERAL_PORTS) or "32768 60999").split()
        inside = range(int(first), int(last) + 1)
        ports = [*(port for port in ports if int(port) not in inside), f"{first}-{last}"]
    # The first packet of a connection: answers to this node's own connections come to such ports as well.
    opened = f"tcp dport {{ {', '.join(ports)} }} tcp flags & (fin | syn | rst | ack) == syn"
    allowed = f"{{ {', '.join(guarded['allowed'])} }}"
    return f"        {opened} meta nfproto ipv6 counter drop\n        {opened} ip saddr != {allowed} counter drop\n"


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return None


def _make_root(directory: str, root: Mapping[str, Any]) -> None:
    """Make a root folder from Debian's archive; its signatures are checked with the node's own keys."""
    options = []
    if root["accept_expired"]:
        options.append('--aptopt=Acquire::Check-Valid-Until "false"')
    options.append(f"--include={','.join(root['packages'])}")
    _run(["mmdebstrap", "--variant=minbase", *options, root["suite"], directory, root["mirror"]])


def _link_packages(directory: str, packages: Sequence[str]) -> None:
    """Make a folder with links to the programs of Debian packages that the node itself has."""
    query = ["dpkg-query", "--show", "--showformat", "${db:Status-Abbrev} ${Package}\n"]
    listed = node_commands.output_of(query, timeout=VERSION_SECONDS, name="dpkg-query")
    # Its second letter says what is, the first what is wanted: one on hold is there, too.
    there = {name for state, name in (line.split() for line in listed.splitlines() if line) if state[1:2] == "i"}
    if missing := sorted(set(packages) - there):
        raise RuntimeError(
            f"Debian packages {', '.join(missing)} are not on this node; expected its image or apt to have them"
        )
    files = node_commands.output_of(
        ["dpkg-query", "--listfiles", *packages], timeout=VERSION_SECONDS, name="dpkg-query"
    )
    programs = [path for path in files.splitlines() if path.startswith(PROGRAM_FOLDERS)]
    engine_archive.link(directory, [path for path in programs if os.path.isfile(path) and os.access(path, os.X_OK)])


def _alias_distribution(directory: str, name: str, number: str) -> None:
    """Give the environment metadata under the name that the engine looks itself up by."""
    library = os.path.join(directory, "lib")
    (python,) = [entry for entry in os.listdir(library) if entry.startswith("python3")]
    metadata = os.path.join(library, python, "site-packages", f"{name}-{number}.dist-info")
    os.makedirs(metadata, exist_ok=True)
    for file_name, text in (
        ("METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n"),
        ("INSTALLER", "cluster\n"),
        ("RECORD", ""),
    ):
        with open(os.path.join(metadata, file_name), "w", encoding="utf-8") as file:
            file.write(text)


def _run(command: list[str], environment: Mapping[str, str] | None = None) -> None:
    # Not the whole command: an index's address may hold a password.
    name = f"{os.path.basename(command[0])} failed"
    node_commands.output_of(command, timeout=INSTALL_SECONDS, name=name, environment=environment)
