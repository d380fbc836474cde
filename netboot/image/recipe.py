"""Declare what an image is made of: packages, kernel, Salt's pins, units, layers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from bottleneck.profile import validation_problems
from bottleneck.profile.boot_types import Image
from bottleneck.profile.value_types import Name, Section
from bottleneck.profile.yaml_lines import Problem, ProfileError, read
from bottleneck.units import shown

FILES = Path(__file__).parent / "files"
BASE = FILES / "base.yaml"


def _relative(text: str) -> str:
    if text.startswith("/") or ".." in Path(text).parts or not text:
        raise ValueError(f"{shown(text)}; expected a path below the kernel's modules, such as drivers/media")
    return text


def _package(text: str) -> str:
    # Reaches the command line of apt, where a leading dash would be an option.
    if not text or not text[0].isalnum() or any(not (letter.isalnum() or letter in "+-.:") for letter in text):
        raise ValueError(f"{shown(text)}; expected the name of a Debian package, such as iproute2")
    return text


def _absolute(text: str) -> str:
    if not text.startswith("/") or ".." in Path(text).parts:
        raise ValueError(f"{shown(text)}; expected an absolute path, such as /opt/cluster")
    return text


Package = Annotated[str, AfterValidator(_package)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]


class Kernel(Section):
    """The kernel and which of its modules stay."""

    package: Package = Field(default="linux-image-amd64", description="Debian package of the kernel.")
    prune: list[Annotated[str, AfterValidator(_relative)]] = Field(
        default=[], description="Globs below /usr/lib/modules/VERSION/kernel; modules there are taken out."
    )


class SaltEnvironment(Section):
    """Salt's minion in an environment of its own, /opt/cluster/salt."""

    pins: str = Field(description="File of pinned packages, beside the recipe or absolute.")
    python: Annotated[str, Field(pattern=r"^3\.\d+$")] = Field(default="3.13", description="The suite's Python.")


class Units(Section):
    """Systemd units that start, and those that never do."""

    enable: list[str] = Field(default=[], description="Units to enable.")
    mask: list[str] = Field(default=[], description="Units to mask.")
    mask_generators: list[str] = Field(default=[], description="Generators to mask.")


class Initramfs(Section):
    """The system that runs before the image is there."""

    modules: list[Name] = Field(description="Kernel modules; what they depend on comes with them.")


class RootSource(Section):
    """Debian packages in a root folder of their own, such as an engine's of a newer release than the image."""

    suite: Name = Field(description="Debian suite.")
    packages: list[Package] = Field(min_length=1, description="Debian packages, with what they need.")
    accept_expired: bool = Field(default=False, description="Take an archive that is past its own date.")
    marker: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] | None = Field(
        default=None, description="Empty file in the folder that says that it is whole."
    )


class LayerSource(Section):
    """Content that goes over the base image, in a squashfs of its own."""

    name: Name = Field(description="The layer's name.")
    packages: list[Package] = Field(default=[], description="Debian packages to install, such as a driver's.")
    directory: AbsolutePath | None = Field(default=None, description="A folder of the control node to take.")
    root_folder: RootSource | None = Field(default=None, description="A root folder to make of Debian packages.")
    prefix: AbsolutePath = Field(
        default="/", description="Where the content of the folder, or of the root folder, stands on the node."
    )


class Recipe(Section):
    """A Linux image, declared. The same recipe and package versions give the same bytes."""

    schema_version: Literal[1] = Field(alias="schema", description="Version of this form.")
    name: Name = Field(description="The recipe's name.")
    suite: Name = Field(default="trixie", description="Debian suite.")
    architecture: Literal["amd64"] = Field(default="amd64", description="Debian architecture.")
    components: list[Name] = Field(default=["main"], description="Archive components.")
    sources: list[str] = Field(
        default=[],
        description="Archive addresses or one-line apt sources, such as a snapshot's; the machine's own when left out.",
    )
    accept_expired: bool = Field(
        default=False,
        description="Take an archive that is past its own date, as a snapshot is; its signatures are still checked.",
    )
    lock: str | None = Field(
        default=None, description="File of package=version lines that the build must end up with, as `list` writes it."
    )
    source_date_epoch: Annotated[int, Field(ge=0)] = Field(description="The date of every file, in seconds.")
    packages: list[Package] = Field(min_length=1, description="Debian packages.")
    kernel: Kernel = Field(default_factory=Kernel, description="The kernel.")
    salt: SaltEnvironment = Field(description="Salt's environment.")
    units: Units = Field(default_factory=Units, description="systemd units.")
    load_modules: list[Name] = Field(default=[], description="Kernel modules that are loaded at every start.")
    initramfs: Initramfs = Field(description="The initramfs.")
    layers: list[LayerSource] = Field(default=[], description="Layers over the base, lowest first.")
    compression_level: Annotated[int, Field(ge=1, le=22)] = Field(default=15, description="zstd level of squashfs.")

    def for_profile(self, name: str, image: Image) -> Recipe:
        """Return this recipe with what a profile asks for besides: packages, layers, modules, another kernel."""
        document = self.model_dump(by_alias=True)
        document |= {
            "name": name,
            "suite": image.suite,
            "components": sorted({*self.components, *image.components}),
            "packages": sorted({*self.packages, *image.packages}),
            "load_modules": sorted({*self.load_modules, *image.modules}),
        }
        document["kernel"]["package"] = image.kernel
        document["layers"] += [{"name": layer, "packages": packages} for layer, packages in image.layers.items()]
        return Recipe.model_validate(document)


def load_recipe(path: Path | str = BASE) -> Recipe:
    """Read a recipe; its file names are made absolute.

    Raises
    ------
    ProfileError
        One line for each problem: ``file:line: key: what was seen; expected what``.
    """
    path = Path(path)
    document = read(path)
    problems = list(document.problems)
    try:
        recipe = Recipe.model_validate(document.data)
    except ValidationError as error:
        raise ProfileError(path, [*problems, *validation_problems(Recipe, error, document)]) from error
    pins = _beside(path, recipe.salt.pins)
    lock = _beside(path, recipe.lock) if recipe.lock else None
    for file, location in ((pins, ("salt", "pins")), (lock, ("lock",))):
        if file and not file.is_file():
            problems.append(document.problem(location, f"{file} is not there; expected a file beside the recipe"))
    if problems:
        raise ProfileError(path, problems)
    salt = recipe.salt.model_copy(update={"pins": str(pins)})
    return recipe.model_copy(update={"salt": salt, "lock": str(lock) if lock else None})


def recipe_digest(recipe: Recipe, files: Path = FILES) -> str:
    """Return the SHA-256 of everything the builder is given: the recipe, the files it names, the node's programs."""
    inputs: dict[str, Any] = recipe.model_dump(by_alias=True)
    # Where a file lies does not matter, what is in it does.
    inputs["salt"]["pins"] = _sha256(Path(recipe.salt.pins))
    inputs["lock"] = _sha256(Path(recipe.lock)) if recipe.lock else None
    inputs["files"] = {path.name: _sha256(path) for path in sorted(files.iterdir()) if path.is_file()}
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def read_lock(path: Path) -> dict[str, str]:
    """Read a list of package=version lines.

    Raises
    ------
    ProfileError
        Naming the line that is none.
    """
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        name, separator, version = text.partition("=")
        if not separator or not name or not version:
            raise ProfileError(f"{path}:{number}", [Problem((), f"{shown(text)}; expected package=version")])
        found[name] = version
    return found


def _beside(recipe: Path, name: str) -> Path:
    path = Path(name)
    return path if path.is_absolute() else recipe.resolve().parent / path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
