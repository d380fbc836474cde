"""The lock files: every version by digest; of the project's own, one version of each package."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "setup/control-node.lock", "setup/build.lock", "setup/source.lock")
ENGINES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "salt/engine/files").glob("*.txt"))
PINNED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==(\S+?)(?: ; [^\\]+)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")


def pinned(name: str) -> dict[str, str]:
    """Return package -> version of a lock file; every line of it belongs to one of them, or is a comment."""
    text = "".join(line for line in (ROOT / name).read_text().splitlines(keepends=True) if line[0] != "#")
    assert PINNED.sub("", text) == "", f"{name}: a line that is no version with digests; next: setup/lock"
    return {found[1]: found[2] for found in PINNED.finditer(text)}


@pytest.mark.parametrize("name", [*LOCKS, *ENGINES])
def test_every_version_has_digests_and_no_line_names_an_index(name: str) -> None:
    assert pinned(name)


def test_what_is_asked_for_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    source = pinned("setup/source.lock")
    for asked, lock in (
        ([*project["dependencies"], *extras["control"], *extras["dev"]], pinned("requirements.lock")),
        ([*project["dependencies"], *extras["control"]], pinned("setup/control-node.lock")),
    ):
        names = {re.split(r"[^A-Za-z0-9._-]", each)[0].lower().replace("_", "-") for each in asked}
        assert names <= lock.keys() | source.keys(), "next: setup/lock"


def test_both_have_one_version_of_each_package() -> None:
    everything, control = pinned("requirements.lock"), pinned("setup/control-node.lock")
    assert control.items() <= everything.items()
    # What is published as source alone is installed last, by a file of its own.
    assert not pinned("setup/source.lock").keys() & everything.keys()


def test_nothing_is_installed_without_its_digest() -> None:
    """Each call of pip reads a lock file with its digests, or installs what is here already."""
    for script in ("setup/venv", "setup/control-node"):
        calls = re.findall(r'^ *"\$\{pip\[@\]\}" (.*)$', (ROOT / script).read_text(), re.MULTILINE)
        assert len(calls) > 3 or script == "setup/control-node"
        unchecked = [call for call in calls if "--require-hashes" not in call]
        # Ours; and on a control node without an index, wheels that its owner made of the source.
        assert unchecked in (["-e ."], ['-r "$venv/source.txt"']), script
        assert "--no-deps" in (ROOT / script).read_text()
