"""The merged map of each profile, as its nodes get it: `python -m tests.golden` writes tests/data/golden again."""

from pathlib import Path
from typing import Any

import yaml

from bottleneck.plan.nodes import node_pillar
from bottleneck.profile import list_profiles, load_profile, profile_name
from bottleneck.profile.paths import repository_directory

FOLDER = repository_directory() / "tests" / "data" / "golden"
COMMAND = "python -m tests.golden, then look at `git diff tests/data/golden`"


class _Dumper(yaml.SafeDumper):
    """Everything written out, lists indented: an alias would hide what a node gets."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def golden_file(profile: Path) -> Path:
    """Return where the golden file of a profile is."""
    return FOLDER / (profile_name(profile).replace("/", "-") + ".yaml")


def merged_map(path: Path) -> dict[str, Any]:
    """Return the slice of every node of a profile."""
    profile = load_profile(path)
    return {node: node_pillar(profile, node) for node in profile.nodes}


def text_of(path: Path) -> str:
    """Return the content of a profile's golden file."""
    dumped = yaml.dump(merged_map(path), Dumper=_Dumper, sort_keys=True, default_flow_style=False, width=120)
    written = f"# Written by {COMMAND.partition(',')[0]}; one entry a node."
    return f"# yamllint disable rule:line-length\n{written}\n{dumped}"


def main() -> None:
    """Write every golden file; remove those without a profile."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    wanted = {golden_file(path): text_of(path) for path in list_profiles()}
    for stale in set(FOLDER.glob("*.yaml")) - set(wanted):
        stale.unlink()
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
