"""An entry of the engine map: how the engine for one kind of accelerator is installed and started."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator

from bottleneck.profile.engine_efficiencies import MeasuredEfficiencies
from bottleneck.profile.engine_interface import DEVICE, SETTINGS, EngineInterface, Template
from bottleneck.profile.paths import ENGINE_MAP, content_directory, lock_file
from bottleneck.profile.value_types import Architecture, Count, Name, Section, Size, with_unit
from bottleneck.profile.yaml_lines import Problem, ProfileError

# What decides the content of an engine's environment; how a worker is started does not.
_ENVIRONMENT_KEYS = ("engine", "python", "lock", "alias_distribution")
# Of these only what is given: the name of an environment without them stays as it was.
_FURTHER_KEYS = ("root_folder", "programs", "source_build", "shares_packages", "archive", "node_packages", "indexes")
# What a node installs an engine and runs its programs by; how a worker is started is worked out on the control node.
_NODE_KEYS = (
    *("engine", "python", "packages", "lock", "untested", "fallback_index", "alias_distribution"),
    *("preload", "environment"),
)


# Every setting that some engine can be given, by its key in a profile.
ENGINE_SETTINGS = frozenset({*SETTINGS, "enforce_eager"})


class PackageIndex(Section):
    """Packages that are on an index of their own: the default one is not asked for them, and it for no others."""

    urls: list[Annotated[str, Field(pattern=r"^https://\S+$")]] = Field(
        min_length=1, description="Its address; with several, what one of them does not have the next one has."
    )
    packages: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None] = Field(
        default={}, description="`name==version` -> SHA-256 of its file; nothing where that is not known."
    )

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        for package in self.packages:
            if not re.fullmatch(r"[A-Za-z0-9._-]+==[^\s;]+", package):
                raise ValueError(f"{package}; expected name==version")
        return self


def _index(written: object) -> object:
    """Return an index as recorded engine maps have it, an address alone, in today's form."""
    return {"urls": [written]} if isinstance(written, str) else written


class FallbackIndex(Section):
    """A package index that is asked only when the default one fails."""

    package: str = Field(description="The package it is for, as in the lock file, whose digests it is checked with.")
    url: str = Field(description="Its address.")


class AliasDistribution(Section):
    """A second name under which a package's version is looked up."""

    name: str = Field(description="The name.")
    version: str = Field(description="The version to give.")


class Actuator(Section):
    """A clock or power limit that the causal experiment may lower for a while: a kernel's file, or two commands."""

    unit: str = Field(description="Unit of the value, such as W or MHz.")
    path: str | None = Field(default=None, description="File with the limit; a pattern that fits one file.")
    read: list[str] = Field(default=[], description="Command that prints the limit, when there is no file.")
    write: list[str] = Field(default=[], description="Command that sets it; {value} stands for the number.")
    largest_slowdown: Annotated[float, Field(gt=1, le=10)] = Field(
        default=2.0, description="By how much the limit may be divided at most."
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.path) == bool(self.read or self.write) or bool(self.read) != bool(self.write):
            raise ValueError("expected either path, or both read and write")
        if self.write and not any("{value}" in part for part in self.write):
            raise ValueError("write has no {value}; expected it where the number goes")
        return self

    def commands(self) -> dict[str, Any]:
        """Return what a node's actuator takes: the file, or the commands."""
        return {"path": self.path} if self.path else {"read": self.read, "write": self.write}


class RootFolder(Section):
    """Debian packages in a folder of their own, made once from the archive; programs run inside it."""

    suite: Name = Field(description="The release, such as forky.")
    packages: list[Name] = Field(min_length=1, description="Packages that are installed there, with what they need.")
    mirror: str = Field(default="http://deb.debian.org/debian", description="The archive.")
    accept_expired: bool = Field(
        default=False,
        description="Take an archive that is past its own date, as a snapshot is; its signatures are still checked.",
    )


def _inner_path(text: str) -> str:
    if text.startswith("/") or ".." in text.split("/"):
        raise ValueError(f"{text!r}; expected a folder below the archive's top, such as build/bin")
    return text


class Archive(Section):
    """An archive with the engine's programs, unpacked into a folder whose name carries its digest."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s@]+$")] = Field(
        description="Where it is: a tar archive, also one packed by gzip, bzip2 or xz; an address without a password."
    )
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(
        description="Its digest; an archive with another one is refused and nothing of it is unpacked."
    )
    programs: Annotated[str, AfterValidator(_inner_path)] = Field(
        default="", description="The folder with its programs, such as build/bin; left out, its top."
    )


class SourceBuild(Section):
    """A package of the environment that is built from its source, after everything else is installed."""

    package: Name = Field(description="Its name.")
    url: Annotated[str, Field(pattern=r"^https://\S+$")] = Field(
        description="Its source archive. Not by name and version: what it is built for may become part of its version,"
        " and pip then takes it for another one."
    )
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(description="Digest of its source archive.")
    environment: dict[str, str] = Field(default={}, description="Environment of the build.")


class EngineSpec(Section):
    """An entry of engines.yaml: the engine for one kind of accelerator."""

    engine: Name = Field(description="The engine: an entry of engine_interfaces.yaml.")
    runs_on: list[Name] = Field(
        default=[],
        description="Kinds of accelerator it is for; left out, the kind that the entry is named after. A node has the"
        " entry of its kind; a deployment may name another one that runs there.",
    )
    serves: bool = Field(default=True, description="Workers are started from it; false has tools for models alone.")
    host_processor: bool = Field(default=False, description="The accelerator is the node's own processor.")
    device: str | None = Field(default=None, description="The engine's own name of the accelerator, such as GPU.")
    root_folder: RootFolder | None = Field(
        default=None, description="The engine is Debian packages in a root folder of its own, not a lock file."
    )
    archive: Archive | None = Field(default=None, description="The engine is an archive of programs, not a lock file.")
    node_packages: list[Name] = Field(
        default=[],
        description="The engine is these Debian packages on the node itself, in its image or installed there by apt.",
    )
    programs: Name | None = Field(
        default=None,
        description="Folder in salt/engine/files with this project's own programs for it; on a node it is below"
        " /opt/cluster/programs.",
    )
    source_build: SourceBuild | None = Field(
        default=None, description="A package that has no build for this accelerator on an index."
    )
    conversion_tools: Name | None = Field(
        default=None, description="The entry whose Python has what a conversion of the model needs; left out, its own."
    )
    load_generator: str | None = Field(
        default=None, description="The load generator that its environment has: a path below it."
    )
    python: str = Field(default="python3.11", description="Interpreter of its virtual environment.")
    shares_packages: bool | None = Field(
        default=None,
        description="Its environment sees the packages of the interpreter it is made with, and its lock file leaves out"
        " what that has to have: torch, and what torch needs of the driver's vendor.",
    )
    packages: list[str] = Field(default=[], description="Debian packages it needs.")
    lock: Name | None = Field(
        default=None,
        description="Lock file in salt/engine/files: packages by version and digests; `setup/lock FILE` adds these.",
    )
    untested: str = Field(
        default="", description="What has not been tried or is missing; an entry without a lock file has to say it."
    )
    requirements: list[str] = Field(default=[], description="What the lock file was resolved from, or is to be.")
    indexes: list[Annotated[PackageIndex, BeforeValidator(_index)]] = Field(
        default=[], description="What the lock file leaves out because the default index does not have it."
    )
    fallback_index: FallbackIndex | None = Field(default=None, description="Index to ask when the default one fails.")
    alias_distribution: AliasDistribution | None = Field(default=None, description="A second name for the package.")
    preload: list[str] = Field(default=[], description="Libraries to preload, relative to the environment.")
    environment: dict[str, str] = Field(default={}, description="Environment of every worker.")
    arguments: list[Template | list[Template]] = Field(
        default=[],
        description="Arguments of every worker, where its command line has {arguments}: words with {names}, and lists"
        " of words that are left out together.",
    )
    tensor_parallel_arguments: list[str] = Field(default=[], description="Added when there are no pipeline stages.")
    pipeline_parallel_arguments: list[str] = Field(default=[], description="Added when there are pipeline stages.")
    bind_interface_environment: list[str] = Field(
        default=[], description="Variables that name the interface to talk over."
    )
    rdma_environment: list[str] = Field(
        default=[],
        description="Variables that name the RDMA devices to talk over; left out, it cannot name any.",
    )
    layer_partition_environment: str | None = Field(
        default=None,
        description="Variable with the layers of each pipeline stage; left out, it splits them as it likes.",
    )
    local_ranks_environment: str | None = Field(
        default=None, description="Variable with the number of ranks on the node; left out, it counts them itself."
    )
    device_environment: str | None = Field(
        default=None,
        description="Variable with the accelerators of a node that it may use; left out, it takes the first ones.",
    )
    sampled_as: Name | None = Field(
        default=None,
        description="The sampler's name of its accelerators, without the number behind it; needed for `host_cards`.",
    )
    architectures: list[Architecture] = Field(
        default=["x86_64"], min_length=1, description="Processors that its packages are built for."
    )
    collective_backend: str | None = Field(
        default=None, description="What torch sends messages between ranks with; measured by `cluster probe`."
    )
    torch_device: str | None = Field(
        default=None,
        description="What torch calls the accelerator: cpu, cuda (of AMD as well), xpu; left out when the engine has no"
        " torch for it. `cluster probe` measures there and nowhere else.",
    )
    shares_host_memory: bool = Field(
        default=False, description="The accelerator's memory is part of the node's main memory."
    )
    runtime_memory_bytes: Size = with_unit(
        "1 GiB", "runtime_memory", "What the engine's own code and buffers take on each rank; an estimate."
    )
    kv_value_bits: Literal[8, 16] | None = Field(
        default=None,
        description="Bits of one value of the KV cache, whatever the model's are; left out, the model's.",
    )
    kv_scale_bits: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="Bits of a scale with its zero point in the KV cache: a block of a head has one for each channel of"
        " its keys and one for each token of its values.",
    )
    kv_block_tokens: Count = Field(default=16, description="Tokens of one block of the KV cache.")
    efficiencies: MeasuredEfficiencies | None = Field(
        default=None, description="What `cluster plan-deployment` predicts it by, where no run of it is given."
    )
    actuators: dict[Name, Actuator] = Field(
        default={}, description="Clocks and power limits that `cluster bottleneck --causal` may lower."
    )

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        forms = ("lock", "root_folder", "archive", "node_packages")
        given = [name for name in forms if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}; expected one form of installation")
        return self

    _kind: str = PrivateAttr(default="")
    _interface: EngineInterface | None = PrivateAttr(default=None)

    @property
    def kind(self) -> str:
        """The entry's name, which is the kind of accelerator it is for when `runs_on` names no others."""
        return self._kind

    @property
    def interface(self) -> EngineInterface:
        """The description of the engine: how it is started, watched and spread."""
        assert self._interface is not None, "set when the engine map is read"
        return self._interface

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of accelerator it runs on."""
        return tuple(self.runs_on) or (self.kind,)

    @property
    def is_installed(self) -> bool:
        """True when the entry says what is to be installed."""
        return bool(self.lock or self.root_folder or self.archive or self.node_packages)

    def cache_value_bytes(self, model_bytes: int) -> int:
        """Return the bytes of one value of the KV cache, scales left out.

        Parameters
        ----------
        model_bytes : int
            What the model's own configuration says.
        """
        return self.kv_value_bits // 8 if self.kv_value_bits else model_bytes

    def cached_value_bytes(self, model_bytes: int, head_dim: int) -> float:
        """Return the bytes of one value of the KV cache with its part of the scales beside it.

        Parameters
        ----------
        model_bytes : int
            What the model's own configuration says.
        head_dim : int
            Width of one head.
        """
        scales = self.kv_scale_bits / 8 * (head_dim + self.kv_block_tokens)
        return self.cache_value_bytes(model_bytes) + scales / (2 * head_dim * self.kv_block_tokens)

    def root(self) -> str:
        """Return the folder that its Debian packages are installed in; the environment where it has none."""
        return "/" if self.node_packages else self.directory()

    def installation(self) -> dict[str, Any]:
        """Return what a node needs to install the engine: its slice of the entry."""
        written = self.model_dump(mode="json")
        further = {key: written[key] for key in _FURTHER_KEYS if written[key]}
        common = {key: written[key] for key in _NODE_KEYS}
        return {"kind": self.kind, "directory": self.directory(), **common, **further, "checks": self._checks()}

    def _checks(self) -> list[dict[str, Any]]:
        """Return what `cluster doctor` looks at, with the device's name; without one, only what asks for none."""
        found = [check.model_dump(mode="json") for check in self.interface.checks]
        named = [check for check in found if self.device is not None or DEVICE not in check["expected"]]
        device = re.escape(self.device or "")
        return [{**check, "expected": check["expected"].replace(DEVICE, device)} for check in named]

    def settings(self) -> set[str]:
        """Return the server settings that the engine can be given."""
        used = self.interface.settings()
        return used | {"enforce_eager"} if self.interface.eager else used

    def directory(self) -> str:
        """Return where the environment is on every node; the name changes with what is in it.

        Raises
        ------
        ProfileError
            When the engine's lock file is not in the repository.
        """
        lock = ""
        if self.lock is not None:
            path = lock_file(self.lock)
            try:
                lock = path.read_text(encoding="utf-8")
            except OSError as error:
                problem = Problem((self.kind, "lock"), f"{self.lock}: {error.strerror}; expected the file {path}")
                raise ProfileError(ENGINE_MAP, [problem]) from None
        written = self.model_dump(mode="json", by_alias=True)
        content = {"lock_text": lock, **{key: written[key] for key in _ENVIRONMENT_KEYS}}
        content |= {key: written[key] for key in _FURTHER_KEYS if written[key]}
        return content_directory("engines", self.kind, content)
