"""A recipe says what is wrong with it, and its digest changes with everything that the builder is given."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from bottleneck.profile import find_profile, load_profile
from bottleneck.profile.boot_types import Image
from bottleneck.profile.yaml_lines import ProfileError
from netboot.image import recipe as recipes
from netboot.image import root
from netboot.image.archive import _check_lock
from netboot.image.commands import BuildError
from netboot.image.initramfs import module_closure
from netboot.image.operations import recipe_for
from netboot.image.recipe import BASE, FILES, Recipe, load_recipe, read_lock, recipe_digest
from tests.by_file import load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(FILES, tmp_path / "files")
    return tmp_path / "files"


def changed(folder: Path, **values: object) -> Path:
    path = folder / "base.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))
    return path


def test_the_base_recipe_is_sound() -> None:
    recipe = load_recipe()
    assert recipe.suite == "trixie" and Path(recipe.salt.pins).is_file()
    units = [unit for unit in recipe.units.enable if "@" not in unit and (FILES / unit).exists()]
    assert {"salt-minion.service", "cluster-enrol.service"} <= set(units)
    assert not set(recipe.units.enable) & set(recipe.units.mask)
    # What a node is for is never pruned.
    kept = (
        "drivers/net",
        "drivers/usb",
        "drivers/thunderbolt",
        "drivers/nvme",
        "drivers/gpu/drm/i915",
        "drivers/gpu/drm/amd",
    )
    for pattern in recipe.kernel.prune:
        assert not any(place == pattern or place.startswith(f"{pattern}/") for place in kept), pattern


def test_every_pin_is_exact() -> None:
    lines = [line for line in Path(load_recipe().salt.pins).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line) for line in lines), lines
    assert "salt==3008.3" in lines


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"packages": ["-o=Dpkg::Pre-Invoke=x"]}, "packages.0: .*expected the name of a Debian package"),
        ({"packages": []}, "packages"),
        ({"kernel": {"prune": ["../../etc"]}}, "kernel.prune.0: .*expected a path below the kernel's modules"),
        ({"salt": {"pins": "none.txt"}}, "salt.pins: .*none.txt is not there"),
        ({"compression_level": 99}, "compression_level"),
        ({"surprise": 1}, "surprise: unknown key"),
        ({"layers": [{"name": "a", "directory": "relative"}]}, "layers.0.directory: .*expected an absolute path"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(folder: Path, values: dict[str, object], words: str) -> None:
    with pytest.raises(ProfileError) as error:
        load_recipe(changed(folder, **values))
    assert re.search(rf"base\.yaml:\d+: {words}", str(error.value)), error.value


def test_the_digest_is_of_the_content_not_of_the_place(folder: Path) -> None:
    assert recipe_digest(load_recipe(folder / "base.yaml"), folder) == recipe_digest(load_recipe(BASE), FILES)


@pytest.mark.parametrize("name", ["init", "salt-minion.service", "minion", "salt-minion-3008.3-python3.13.txt"])
def test_the_digest_changes_with_every_input(folder: Path, name: str) -> None:
    before = recipe_digest(load_recipe(folder / "base.yaml"), folder)
    with (folder / name).open("a") as stream:
        stream.write("# more\n")
    assert recipe_digest(load_recipe(folder / "base.yaml"), folder) != before


def test_a_profile_adds_to_the_base() -> None:
    base = load_recipe()
    image = Image(
        kernel="linux-image-cloud-amd64",
        components=["main", "non-free"],
        packages=["htop"],
        layers={"driver": ["firmware-intel-graphics"]},
        modules=["i915"],
    )
    recipe = base.for_profile("arc", image)
    assert recipe.name == "arc" and recipe.kernel.package == "linux-image-cloud-amd64"
    assert set(recipe.packages) == {*base.packages, "htop"}
    assert recipe.kernel.prune == base.kernel.prune and recipe.load_modules == ["i915"]
    assert set(recipe.components) == {"main", "non-free", "non-free-firmware"}
    assert [(layer.name, layer.packages) for layer in recipe.layers] == [("driver", ["firmware-intel-graphics"])]
    assert isinstance(recipe, Recipe) and recipe_digest(recipe) != recipe_digest(base)


def test_a_lock_is_held_to(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("# as listed\niproute2=6.15.0-1\nperl-base=5.40.1-6 # pinned\n")
    lock = read_lock(path)
    assert lock == {"iproute2": "6.15.0-1", "perl-base": "5.40.1-6"}
    _check_lock(lock, dict(lock), "lock")
    with pytest.raises(BuildError) as error:
        _check_lock(lock, {"iproute2": "6.16", "curl": "8"}, "lock")
    for words in ("iproute2 6.16, locked 6.15.0-1", "curl is not locked", "perl-base is locked and was not installed"):
        assert words in str(error.value)
    path.write_text("iproute2\n")
    with pytest.raises(ProfileError, match=r"lock:1: .*expected package=version"):
        read_lock(path)


def test_modules_bring_what_they_need() -> None:
    needs = {"igc": ["ptp"], "ptp": ["pps_core"], "pps_core": [], "ext4": ["jbd2"], "jbd2": [], "crc32c_generic": []}
    soft = {"ext4": ["crc32c_generic", "not_built"]}
    assert module_closure(needs, soft, ["igc", "ext4"]) == [
        "crc32c_generic",
        "ext4",
        "igc",
        "jbd2",
        "pps_core",
        "ptp",
    ]


def test_a_module_that_another_needs_is_not_pruned() -> None:
    modules = {
        "kernel/drivers/ata/libata.ko.xz": ["kernel/drivers/scsi/scsi_mod.ko.xz"],
        "kernel/drivers/scsi/scsi_mod.ko.xz": [],
        "kernel/drivers/scsi/aacraid/aacraid.ko.xz": ["kernel/drivers/scsi/scsi_mod.ko.xz"],
        "kernel/drivers/scsi/sd_mod.ko.xz": ["kernel/drivers/scsi/scsi_mod.ko.xz"],
        "kernel/drivers/media/tuners/xc.ko.xz": [],
        "kernel/drivers/medium.ko.xz": [],
    }
    gone = ["kernel/drivers/media/tuners/xc.ko.xz", "kernel/drivers/scsi/aacraid/aacraid.ko.xz"]
    assert root.prunable(modules, ["drivers/media", "drivers/scsi/[!s]*"]) == gone
    assert root.prunable(modules, ["drivers/scsi"]) == [gone[1], "kernel/drivers/scsi/sd_mod.ko.xz"]


def test_files_that_go_into_the_image_are_in_the_tree() -> None:
    missing = [name for name in root._PROGRAMS if not (recipes.FILES / name).is_file()]
    assert missing == []


def test_an_engine_of_debian_packages_is_a_layer_of_the_image() -> None:
    """No node of such a cluster reaches Debian's archive."""
    profile = load_profile(find_profile("arc-a770/v0.1"))
    recipe = recipe_for(profile)
    engine = profile.engines["vulkan-llamacpp"]
    (layer,) = (layer for layer in recipe.layers if layer.root_folder)
    assert (layer.name, layer.prefix) == ("engine-vulkan-llamacpp", engine.directory())
    assert layer.root_folder and engine.root_folder
    assert layer.root_folder.packages == list(engine.root_folder.packages)
    assert set(engine.packages) <= set(recipe.packages)
    # What a node's module `engine` looks for.
    assert layer.root_folder.marker == load("_modules/engine.py", "engine_module_of_recipe").MARKER
    assert {"intel-graphics", layer.name} == {each.name for each in recipe.layers}


def test_an_engine_of_the_nodes_own_packages_is_a_layer_too() -> None:
    profile = load_profile(find_profile("arc-a770/v0.1"))
    (engine,) = (each for each in profile.engines.values() if each.node_packages and "xpu" in each.kinds)
    deployment = profile.deployments["layers2"].model_copy(update={"engine": engine.kind})
    changed = profile.model_copy(update={"deployments": {**profile.deployments, "layers2": deployment}})
    layers = {layer.name: layer for layer in recipe_for(changed).layers}
    assert set(layers) == {"intel-graphics", f"engine-{engine.kind}"}
    assert layers[f"engine-{engine.kind}"].packages == engine.node_packages
