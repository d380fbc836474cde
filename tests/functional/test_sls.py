"""Every SLS renders for every profile and node, through the pillar, and keeps to our names."""

import re
from pathlib import Path
from typing import Any

import pytest
from saltfactories.utils.functional import Loaders

from bottleneck.profile import list_profiles, load_profile, profile_name
from tests.functional.minion_options import minion_options

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
STATES = sorted(
    ".".join(path.relative_to(REPOSITORY / "salt").with_suffix("").parts).removesuffix(".init")
    for path in (REPOSITORY / "salt").glob("*/*.sls")
    if path.parent.name != "control"  # not a node's: see test_control_states.py
)
IDENTIFIER = re.compile(r"^[a-z0-9]+(-[a-z0-9]+)+$")


PROFILES = [*list_profiles(), REPOSITORY / "tests/data/clusters/four-in-a-ring.yaml"]
NODES = [(path, name, node.hostname) for path in PROFILES for name, node in load_profile(path).nodes.items()]


@pytest.fixture(scope="module", params=NODES, ids=[f"{profile_name(path)}-{name}" for path, name, _ in NODES])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaders:
    profile, name, minion = request.param
    root = tmp_path_factory.mktemp(name)
    options = minion_options(root, minion, cluster_profile=str(profile), cluster_directory=str(root / "cluster"))
    return Loaders(options)


@pytest.mark.parametrize("sls", [name for name in STATES if name != "top"])
def test_it_renders(node: Any, sls: str) -> None:
    rendered = node.modules.state.show_sls(sls)
    assert isinstance(rendered, dict), rendered
    component = sls.split(".")[0]
    for identifier, state in rendered.items():
        assert IDENTIFIER.match(identifier), identifier
        own = state["__sls__"].split(".")[0]
        assert identifier.startswith(own + "-"), f"{identifier} is in {state['__sls__']}"
        functions = [part for name, parts in state.items() if not name.startswith("__") for part in parts]
        assert any("name" in part for part in functions if isinstance(part, dict)) or any(
            "pkgs" in part for part in functions if isinstance(part, dict)
        ), f"{identifier} has no explicit name"
    assert component in {state["__sls__"].split(".")[0] for state in rendered.values()} or not rendered


def test_the_top_file_names_states_that_exist(node: Any) -> None:
    top = node.modules.state.show_top()
    assert top, "no states for this node"
    for sls in top["base"]:
        assert sls in {name.removesuffix(".init") for name in STATES}, sls
