"""Every unit of ours is kept from what it does not need: rendered, and looked at by systemd itself."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import jinja2
import pytest
import unit_sandbox

from bottleneck.profile import find_profile, load_profile
from cli import units_page
from netboot.control_node import control_pillar

REPOSITORY = Path(__file__).parents[2]
ROOT = "/var/cache/cluster/engines/a"
TRANSIENT = {
    "cluster-sampler": unit_sandbox.SAMPLER,
    # With a root folder it has more powers than without.
    "cluster-worker-NAME": unit_sandbox.engine(0.9, ["/var/cache/cluster/engine"], ROOT),
}
NEEDS_SYSTEMD = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")


def rendered(name: str) -> str:
    if name in TRANSIENT:
        return "\n".join(["[Service]", "ExecStart=/bin/true", *TRANSIENT[name], ""])
    text = (REPOSITORY / units_page.UNITS[name].source).read_text()
    pillar = control_pillar(load_profile(find_profile("arc-a770/v0.1")), REPOSITORY, "/opt/cluster/bin")
    return jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(text).render(pillar=pillar)


def settings(text: str) -> set[str]:
    return set(re.findall(r"^([A-Z][A-Za-z]+)=", text, re.MULTILINE))


@NEEDS_SYSTEMD
@pytest.mark.parametrize("name", [name for name, unit in units_page.UNITS.items() if unit.most is not None])
def test_systemd_finds_it_little_exposed(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.service"
    path.write_text(rendered(name))
    seen = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    overall = re.search(r"Overall exposure level for \S+: ([0-9.]+)", seen.stdout)
    assert overall, seen.stderr
    most = units_page.UNITS[name].most
    assert most is not None
    assert float(overall[1]) <= most, seen.stdout


@pytest.mark.parametrize("name", units_page.UNITS)
def test_what_it_lacks_has_a_reason(name: str) -> None:
    lacks = set(units_page.EXPECTED) - settings(rendered(name))
    reasons = set(units_page.UNITS[name].without)
    assert reasons == ({"*"} if "*" in reasons else lacks)


@pytest.mark.parametrize("name", units_page.UNITS)
def test_powers_are_named_where_there_are_any(name: str) -> None:
    kept = re.search(r"^CapabilityBoundingSet=(.*)$", rendered(name), re.MULTILINE)
    assert bool(units_page.UNITS[name].powers) == (kept is None or bool(kept[1].strip()))


def test_no_unit_of_ours_is_left_out() -> None:
    files = {path.stem for path in REPOSITORY.glob("*/*/files/*.service")}
    assert files == {name for name, unit in units_page.UNITS.items() if unit.source.endswith(".service")}
