"""Each node has a key of its own: made by the control node, in that node's pillar and file alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from bottleneck import node_seal
from bottleneck.profile import find_profile
from control import node_keys, records, sealed_batches
from tests.by_file import load

NODE, OTHER = "node0", "node1"


@pytest.fixture
def opts(tmp_path: Path) -> dict[str, Any]:
    return {"cluster_directory": str(tmp_path / "cluster"), "cluster_profile": str(find_profile("embedded"))}


def test_a_key_is_one_node_s_one_generation_s_and_the_same_until_it_is_renewed(opts: dict[str, Any]) -> None:
    first = node_keys.key_of(opts, NODE)
    assert first == node_keys.key_of(opts, NODE) and len(first) == node_seal.KEY_BYTES
    assert first != node_keys.key_of(opts, OTHER)
    text = "text"
    former = node_seal.seal(first, node_seal.BATCHES, NODE, text)
    assert node_keys.seal_holds(opts, node_seal.BATCHES, NODE, text, former)
    node_keys.renew(opts, NODE, keep_former=True)
    assert node_keys.key_of(opts, NODE) != first
    assert node_keys.seal_holds(opts, node_seal.BATCHES, NODE, text, former)
    assert not node_keys.is_proven(opts, NODE), "the former key proves nothing of the present one"
    node_keys.settle(opts, NODE)
    assert not node_keys.seal_holds(opts, node_seal.BATCHES, NODE, text, former)
    present = node_seal.seal(node_keys.key_of(opts, NODE), node_seal.BATCHES, NODE, text)
    assert node_keys.seal_holds(opts, node_seal.BATCHES, NODE, text, present)
    assert node_keys.is_proven(opts, NODE)
    # Who enrols anew leaves nothing to whoever had the key before.
    node_keys.renew(opts, NODE, keep_former=False)
    assert not node_keys.seal_holds(opts, node_seal.BATCHES, NODE, text, present)


@pytest.mark.parametrize("minion", ["", "../node0", ".hidden", "a/b"])
def test_an_id_that_is_no_file_name_has_no_key(opts: dict[str, Any], minion: str) -> None:
    with pytest.raises(ValueError, match="no minion's id"):
        node_keys.key_of(opts, minion)


def test_a_broken_record_names_the_file_and_what_to_do(opts: dict[str, Any]) -> None:
    node_keys.key_of(opts, NODE)
    (path,) = Path(opts["cluster_directory"]).glob("secrets/node-keys/node0.json")
    assert path.stat().st_mode & 0o077 == 0 and path.parent.stat().st_mode & 0o077 == 0
    path.write_text("{")
    with pytest.raises(records.RecordError, match=r"node0\.json.*cluster apply"):
        node_keys.key_of(opts, NODE)


# -- before every node has one


def event(opts: dict[str, Any], minion: str, batches: Any) -> dict[str, str]:
    text = json.dumps(batches)
    return {"text": text, "seal": node_seal.seal(node_keys.key_of(opts, minion), node_seal.BATCHES, minion, text)}


def test_a_node_whose_states_are_older_than_keys_is_taken_until_it_has_sealed_once(opts: dict[str, Any]) -> None:
    assert sealed_batches.opened(opts, NODE, {"batches": [1]}) == [1]
    # Its pillar has the key now; its sampler is still the former one.
    node_keys.key_of(opts, NODE)
    assert sealed_batches.opened(opts, NODE, {"batches": [2]}) == [2]
    assert sealed_batches.opened(opts, NODE, event(opts, NODE, [3])) == [3]
    with pytest.raises(sealed_batches.UnsealedError, match="without a seal"):
        sealed_batches.opened(opts, NODE, {"batches": [4]})
    # Also when it is given another key.
    node_keys.renew(opts, NODE, keep_former=True)
    with pytest.raises(sealed_batches.UnsealedError, match="without a seal"):
        sealed_batches.opened(opts, NODE, {"batches": [5]})


def test_a_node_that_enrols_seals_from_its_first_batch_on(opts: dict[str, Any]) -> None:
    node_keys.renew(opts, NODE, keep_former=False)
    with pytest.raises(sealed_batches.UnsealedError, match="without a seal"):
        sealed_batches.opened(opts, NODE, {"batches": [1]})
    with pytest.raises(sealed_batches.UnsealedError, match="cluster apply"):
        sealed_batches.opened(opts, NODE, event(opts, OTHER, [1]))
    assert sealed_batches.opened(opts, NODE, event(opts, NODE, [1])) == [1]


def test_a_record_that_cannot_be_read_refuses_and_ends_nothing(opts: dict[str, Any]) -> None:
    sealed = event(opts, NODE, [1])
    (path,) = Path(opts["cluster_directory"]).glob("secrets/node-keys/node0.json")
    path.write_text("{")
    for content in (sealed, {"batches": [1]}):
        with pytest.raises(sealed_batches.UnsealedError, match="cannot be checked"):
            sealed_batches.opened(opts, NODE, content)


# -- on a node


@pytest.fixture
def minion(tmp_path: Path) -> dict[str, Any]:
    return {"id": NODE, "cluster_node_key": str(tmp_path / "node.key")}


@pytest.fixture
def node_key(minion: dict[str, Any], opts: dict[str, Any]) -> Iterator[ModuleType]:
    module = load("_modules/node_key.py", "node_key_module")
    module.__opts__ = minion
    pillar = {"node_key": node_keys.key_of(opts, NODE).hex()}
    module.__salt__ = {"pillar.items": lambda unmask: dict(pillar) if unmask else {"node_key": "**"}}
    module.pillar = pillar
    yield module


def test_a_node_takes_its_key_over_once_into_a_file_of_root(node_key: Any, minion: dict[str, Any]) -> None:
    path = Path(minion["cluster_node_key"])
    assert node_key.learn(test=True) and not path.exists()
    assert node_key.learn() and path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().strip() == node_key.pillar["node_key"]
    assert not node_key.learn() and not node_key.learn(test=True)
    node_key.pillar.clear()
    with pytest.raises(CommandExecutionError, match="no key"):
        node_key.learn()


def test_the_state_says_that_the_key_changed_and_never_what_it_is(node_key: Any) -> None:
    state = load("_states/node_key.py", "node_key_state")
    state.__salt__ = {"node_key.learn": node_key.learn}
    seen = []
    for test in (True, False, False):
        state.__opts__ = {"test": test}
        seen.append(state.learnt("what it sends"))
    assert [(each["result"], bool(each["changes"])) for each in seen] == [(None, False), (True, True), (True, False)]
    assert node_key.pillar["node_key"] not in str(seen)


def test_the_pillar_of_a_node_has_its_key_alone(opts: dict[str, Any]) -> None:
    namespace: dict[str, Any] = {"__opts__": opts, "__grains__": {"id": NODE}}
    source = (Path(__file__).parents[2] / "pillar" / "cluster.sls").read_text().removeprefix("#!py")
    exec(compile(source, "cluster.sls", "exec"), namespace)
    pillars = {}
    for minion in (NODE, OTHER, "stranger"):
        namespace["__grains__"] = {"id": minion}
        pillars[minion] = namespace["run"]()
    assert pillars[NODE]["node_key"] == node_keys.key_of(opts, NODE).hex()
    assert pillars["stranger"] == {} and pillars[NODE]["node_key"] not in str(pillars[OTHER])
