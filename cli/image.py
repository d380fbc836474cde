"""`cluster image`: build the Linux image that the nodes boot, compare, make active, go back."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from rich.markup import escape
from rich.table import Table

from bottleneck.profile import Profile, ProfileError, find_profile, load_profile
from bottleneck.units import DURATION, size_text
from cli.cluster import runner_step, shown
from cli.control import ControlError, Progress, connect
from cli.options import DEFAULT_LAB, DEFAULT_PROFILE, JsonOption, LabOption, ProfileOption
from cli.output import USAGE, console, emit, fail, out, plain
from netboot.image import operations
from netboot.image.commands import BuildError
from netboot.image.store import Store, StoreError

app = typer.Typer(help="The Linux image that the nodes boot.", no_args_is_help=True)

StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store",
        envvar="CLUSTER_IMAGES",
        help="A folder of images on this machine, instead of the control node's.",
        show_default=False,
    ),
]
ImageArgument = Annotated[str, typer.Argument(help="Beginning of a digest, `active` or `previous`.")]
_SHOWN_FILES = 40


class Images(Protocol):
    """Whoever can run the functions of the runner `image`."""

    def runner(
        self, function: str, arguments: dict[str, Any] | None = None, on_progress: Progress | None = None
    ) -> Any: ...


class LocalImages:
    """A store on this machine: the functions of the runner `image`, without a control node."""

    def __init__(self, root: Path, profile: Profile) -> None:
        self.store, self.profile = Store(root.absolute()), profile

    def functions(self, on_progress: Progress | None = None) -> dict[str, Callable[..., Any]]:
        """Return what each of the runner's functions is here."""
        store, name = self.store, self.profile.name
        return {
            "image.build": partial(_build, store, self.profile, on_progress),
            "image.list": lambda: {"images": operations.show_all(store, name)},
            "image.show": partial(operations.show, store, name),
            "image.diff": partial(operations.diff, store, name),
            "image.activate": partial(operations.activate, store, self.profile),
            "image.rollback": partial(operations.rollback, store, name),
            # No node boots from here, so none runs what would go.
            "image.gc": lambda keep=3: operations.collect(store, keep, ()),
            "image.lock": lambda **given: {"lines": operations.locked(store, name, **given)},
        }

    def runner(
        self, function: str, arguments: dict[str, Any] | None = None, on_progress: Progress | None = None
    ) -> Any:
        """Call one of them; its errors are those of a runner."""
        given = {key: value for key, value in (arguments or {}).items() if value is not None}
        try:
            return self.functions(on_progress)[function](**given)
        except (BuildError, StoreError, ProfileError) as error:
            raise ControlError(str(error)) from error


def _build(
    store: Store,
    profile: Profile,
    on_progress: Progress | None,
    recipe: str | None = None,
    activate: bool = False,
    accept_expired: bool = False,
    engines: bool = False,
) -> dict[str, Any]:
    started = time.monotonic()

    def report(progress: dict[str, object]) -> None:
        if on_progress:
            on_progress({**progress, "node": "", "seconds": round(time.monotonic() - started, 1)})

    return operations.build(store, profile, report, recipe, activate, accept_expired, engines)


def images_of(profile: str, lab: str, store: Path | None) -> Images:
    """Return the images of a profile's control node, or those in `store`."""
    if store is None:
        return connect(profile, lab)
    try:
        return LocalImages(store, load_profile(find_profile(profile)))
    except ProfileError as error:
        fail(str(error), f"cluster profile check {profile}", USAGE)


@app.command()
def build(
    recipe: Annotated[
        Path | None, typer.Option(help="Another recipe than the base one, a file on the control node.")
    ] = None,
    activate: Annotated[bool, typer.Option("--activate", help="Make it the active image when it is built.")] = False,
    accept_expired: Annotated[
        bool,
        typer.Option("--accept-expired", help="Take a Debian archive that is past its own date, as a snapshot is."),
    ] = False,
    engines: Annotated[
        bool,
        typer.Option(
            "--engines", help="Install the profile's engines that have a lock file there, and make a layer of each."
        ),
    ] = False,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build the profile's image; the same inputs give the same bytes, which are kept once.

    Examples:

      cluster image build

      cluster image build --activate

      cluster image build --store ./images --recipe recipe.yaml

      cluster image build --engines --accept-expired
    """
    images = images_of(profile, lab, store)
    arguments = {
        "recipe": str(recipe) if recipe else None,
        "activate": activate,
        "accept_expired": accept_expired,
        "engines": engines,
    }
    with runner_step("Building the image", "cluster image build --help") as current:
        made = images.runner("image.build", arguments, shown(current))

    def human() -> None:
        sizes = ", ".join(f"{name} {size_text(size)}" for name, size in made["bytes"].items())
        out.print(f"[bold]{made['digest']}[/]  kernel {made['kernel']}, {made['packages']} packages; {sizes}")
        for layer in made["layers"]:
            out.print(f"  layer {layer['name']}  {layer['sha256'][:16]}  {size_text(layer['bytes'])}")
        if "active" not in made["roles"]:
            console.print(f"[dim]next:[/] cluster image activate {made['digest']}")

    emit(made, as_json, human)


@app.command("list")
def list_(
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the images, newest first.

    Examples:

      cluster image list --json
    """
    found = _ask(images_of(profile, lab, store), "Reading the images", "image.list")

    def human() -> None:
        if not found["images"]:
            console.print("no image yet\n[dim]next:[/] cluster image build")
            return
        table = Table("image", "", "built", "recipe", "kernel", "packages", "root", "layers", box=None)
        for each in found["images"]:
            table.add_row(
                each["digest"],
                ", ".join(each["roles"]),
                each["created"],
                escape(each["recipe"]),
                each["kernel"],
                str(each["packages"]),
                size_text(each["bytes"]["root.squashfs"]),
                ", ".join(escape(layer["name"]) for layer in each["layers"]),
            )
        out.print(table)

    emit(found, as_json, human)


@app.command()
def show(
    image: ImageArgument = "active",
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and compare its digest.")] = False,
    packages: Annotated[bool, typer.Option("--packages", help="List packages and versions.")] = False,
    lock: Annotated[
        bool, typer.Option("--lock", help="Print package=version lines alone, for a recipe's `lock`.")
    ] = False,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an image consists of.

    Examples:

      cluster image show

      cluster image show 3f2a --verify

      cluster image show active --lock
    """
    images = images_of(profile, lab, store)
    if lock:
        lines = _ask(images, "Reading the image", "image.lock", {"image": image})
        emit(lines, as_json, lambda: plain("\n".join(lines["lines"])))
        return
    found = _ask(images, "Reading the image", "image.show", {"image": image, "verify": verify})

    def human() -> None:
        roles = ", ".join(found["roles"]) or "kept"
        out.print(f"[bold]{found['digest']}[/] ({roles}), built {found['created']} in {found['build_seconds']:.0f} s")
        out.print(f"{found['suite']}, kernel {found['kernel']}, recipe {found['recipe']}, {found['folder']}")
        table = Table("file", "sha256", "size", box=None)
        for name, file in found["files"].items():
            table.add_row(name, file["sha256"][:16], size_text(file["bytes"]))
        for layer in found["layers"]:
            table.add_row(f"layer {escape(layer['name'])}", layer["sha256"][:16], size_text(layer["bytes"]))
        out.print(table)
        if packages:
            for name, version in sorted((found["packages"] | found["python"]).items()):
                out.print(f"  {name} {version}", highlight=False)

    emit(found, as_json, human)
    if found.get("problems"):
        fail(found["problems"][0], "cluster image build")


@app.command()
def diff(
    old: ImageArgument = "previous",
    new: ImageArgument = "active",
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what one image has that another has not: packages, layers, files.

    Examples:

      cluster image diff

      cluster image diff 3f2a 91cc --json
    """
    found = _ask(images_of(profile, lab, store), "Comparing", "image.diff", {"old": old, "new": new})
    emit(found, as_json, lambda: _print_diff(found))


@app.command()
def activate(
    image: ImageArgument,
    canary: Annotated[
        str | None, typer.Option(help="Give it to this node first; to all once that node came back.")
    ] = None,
    deadline: Annotated[
        str, typer.Option(help="How long the canary may take to come back before the image is rolled back.")
    ] = "10m",
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an image the one that nodes boot next.

    Examples:

      cluster image activate 3f2a

      cluster image activate 3f2a --canary node0 --deadline 10m
    """
    arguments: dict[str, Any] = {"image": image}
    if canary:
        arguments |= {"canary": canary, "deadline_seconds": _seconds(deadline)}
    found = _ask(images_of(profile, lab, store), "Activating", "image.activate", arguments)

    def human() -> None:
        trial = found["canary"]
        if trial:
            out.print(f"{trial['node']} boots {trial['digest']} next; the others keep {found['active']}")
            console.print(f"[dim]next:[/] cluster reprovision {trial['node']}")
        else:
            out.print(f"{found['active']} is active for {found['profile']}, from each node's next boot on")

    emit(found, as_json, human)


@app.command()
def rollback(
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the previous image active again; during a trial, end it.

    Examples:

      cluster image rollback
    """
    found = _ask(images_of(profile, lab, store), "Rolling back", "image.rollback")

    def human() -> None:
        if found["trial_ended"]:
            out.print(f"{found['trial_ended']} boots {found['active']} again, like the others; {found['from']} is kept")
        else:
            out.print(f"{found['active']} is active again instead of {found['from']}")

    emit(found, as_json, human)


@app.command()
def gc(
    keep: Annotated[int, typer.Option(min=0, max=1000, help="How many of the newest stay in any case.")] = 3,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove images that are not active, previous, on trial, run by a node, or among the newest.

    Examples:

      cluster image gc --keep 2
    """
    found = _ask(images_of(profile, lab, store), "Removing what nobody needs", "image.gc", {"keep": keep})

    def human() -> None:
        removed = ", ".join(found["images"]) or "no image"
        freed = f"{len(found['layers'])} layers, {size_text(found['bytes'])}"
        out.print(f"removed {removed} and {freed}; kept {len(found['kept'])}")

    emit(found, as_json, human)


def _ask(images: Images, title: str, function: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
    with runner_step(title, "cluster image list"):
        found: dict[str, Any] = images.runner(function, arguments)
    return found


def _seconds(text: str) -> float:
    try:
        return float(DURATION.parse(text if not text.endswith("m") else f"{text[:-1]} min"))
    except ValueError as error:
        fail(f"--deadline {error}", "cluster image activate --help", USAGE)


def _print_diff(found: dict[str, Any]) -> None:
    out.print(f"{found['old']} -> {found['new']}")
    if found["kernel"]:
        out.print(f"  [yellow]~[/] kernel {found['kernel'][0]} -> {found['kernel'][1]}")
    for what in ("packages", "python", "layers", "files"):
        part = found[what]
        total = sum(len(part[kind]) for kind in ("added", "removed", "changed"))
        if not total:
            continue
        counts = ", ".join(f"{len(part[kind])} {kind}" for kind in ("added", "removed", "changed"))
        out.print(f"[bold]{what}[/]: {counts}")
        lines = [f"  [green]+[/] {escape(_entry(what, name, value))}" for name, value in part["added"].items()]
        lines += [f"  [red]-[/] {escape(_entry(what, name, value))}" for name, value in part["removed"].items()]
        for name, (before, after) in part["changed"].items():
            versions = "" if what == "files" else f" {before} -> {after}"
            lines.append(f"  [yellow]~[/] {escape(name + versions)}")
        for line in lines[:_SHOWN_FILES]:
            out.print(line, highlight=False)
        if len(lines) > _SHOWN_FILES:
            console.print(f"  [dim]and {len(lines) - _SHOWN_FILES} more: --json has them all[/]")
    old, new = found["bytes"]
    out.print(f"size {size_text(old)} -> {size_text(new)}")


def _entry(what: str, name: str, value: str) -> str:
    return name if what == "files" else f"{name} {value}"
