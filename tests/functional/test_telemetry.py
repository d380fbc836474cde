"""The telemetry module, state, runner and reactor files through Salt's loaders; the sampler is started for real."""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import salt.config
import salt.loader
import salt.template
import yaml
from salt.exceptions import CommandExecutionError

from bottleneck.plan.nodes import deployment_record
from bottleneck.profile import load_profile
from bottleneck.telemetry import cluster_view, sample_schema
from bottleneck.telemetry.store import Store
from control import internal_events
from tests import run_builder

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
SHAPE = run_builder.Shape()


@pytest.fixture
def node(loaders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A node whose files are all below a folder."""
    places = {
        "PROGRAM": str(REPOSITORY / "salt/sampler/files/sampler.py"),
        "CONFIG": str(tmp_path / "sampler.json"),
        "LOG": str(tmp_path / "sampler.log"),
        "DIRECTORY": str(tmp_path / "telemetry"),
    }
    # Modules see each other through a loader of their own, which executes a module again when it is first asked for it.
    loaders.modules.telemetry.status()
    for name, place in places.items():
        monkeypatch.setitem(loaders.modules["telemetry.start"].__globals__, name, place)
    monkeypatch.setitem(loaders.modules["supervise.start"].__globals__, "DIRECTORY", str(tmp_path / "supervise"))
    config = {
        "node": "node0",
        "links": {"local": ["lo"]},
        "control": None,
        "minion": {"id": "node0", "sock_dir": str(tmp_path)},
        "directory": str(tmp_path / "telemetry"),
        "key_file": str(tmp_path / "node.key"),
        "worker_file": str(tmp_path / "worker.json"),
        "supervise_directory": str(tmp_path / "supervise"),
        "rate_hertz": 20,
        "batch_interval_seconds": 0.5,
        "send_interval_seconds": 0.5,
        "engine_interval_seconds": 1,
        "acknowledge_interval_seconds": 0.5,
        # More than a test can wait for, however slow the machine.
        "spool_batches": 10_000,
        "spool_bytes": 2**28,
        "spool_directory": str(tmp_path / "kept"),
    }
    (tmp_path / "sampler.json").write_text(json.dumps(config))
    yield loaders
    loaders.modules.telemetry.stop()


def test_one_sample_of_this_machine(node: Any, tmp_path: Path) -> None:
    sample = node.modules.telemetry.sample(str(tmp_path / "sampler.json"))
    assert sample["t"] == pytest.approx(time.time(), abs=30)
    assert set(sample["links"]) == {"local"} and sample["cpu"]
    assert sample["mem"]["total"] > sample["mem"]["available"] > 0
    fields: dict[str, set[str]] = {}
    for part in sample_schema.PARTS:
        fields.setdefault(part.key, set()).update(part.fields)
    assert set(sample) <= {"t", *fields}
    for part in sample_schema.PARTS:
        found = sample.get(part.key) or {}
        for values in found.values() if part.of else [found]:
            if part.listed:
                assert len(values) == len(part.fields), part.key
            else:
                assert set(values) <= fields[part.key], part.key


def test_the_sampler_runs_keeps_what_nobody_takes_and_ends(node: Any, tmp_path: Path) -> None:
    config = str(tmp_path / "sampler.json")
    started = node.modules.telemetry.start(config)
    assert started["running"]
    assert node.modules.telemetry.start(config)["pid"] == started["pid"]
    deadline = time.monotonic() + 120
    while node.modules.telemetry.status().get("waiting", 0) < 2:
        assert time.monotonic() < deadline, node.modules.telemetry.status()
        time.sleep(0.1)
    status = node.modules.telemetry.status()
    assert status["acknowledged"] == 0 and status["dropped"] == 0
    # There is no minion here: what cannot be sent now is kept, in order.
    reported = {"node0": {"boot": status["boot"], "sequence": 1, "missing": []}}
    assert node.modules.telemetry.acknowledge(reported) is True
    while node.modules.telemetry.status().get("acknowledged") != 1:
        assert time.monotonic() < deadline, node.modules.telemetry.status()
        time.sleep(0.1)
    assert node.modules.telemetry.stop()["running"] is False
    assert "waiting" not in node.modules.telemetry.status()


def test_what_a_killed_sampler_has_kept_is_there_in_its_next_life(node: Any, tmp_path: Path) -> None:
    config = str(tmp_path / "sampler.json")
    pid = node.modules.telemetry.start(config)["pid"]
    deadline = time.monotonic() + 120
    while node.modules.telemetry.status().get("waiting", 0) < 3:
        assert time.monotonic() < deadline, node.modules.telemetry.status()
        time.sleep(0.1)
    before = node.modules.telemetry.status()
    os.kill(pid, signal.SIGKILL)
    while node.modules.telemetry.status()["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert node.modules.telemetry.start(config)["pid"] != pid
    while node.modules.telemetry.status().get("waiting", 0) < before["waiting"] + 1:
        assert time.monotonic() < deadline, node.modules.telemetry.status()
        time.sleep(0.1)
    after = node.modules.telemetry.status()
    assert after["boot"] != before["boot"]
    assert after["waiting"] >= after["sequence"] + before["sequence"], "all that was numbered, and all that is new"
    assert after["dropped"] == 0


def test_revive_sees_a_sampler_that_runs_and_sends_nothing(node: Any, tmp_path: Path) -> None:
    config = str(tmp_path / "sampler.json")
    first = node.modules.telemetry.revive(config)
    assert (first["revived"], first["running"]) == ("ended", True)
    assert node.modules.telemetry.revive(config)["revived"] is None, "it has just begun"
    # There is no minion here: nothing is ever taken, and its process lives. Three intervals are 1.5 s.
    deadline = time.monotonic() + 60
    while (found := node.modules.telemetry.revive(config))["revived"] is None:
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    assert found["revived"] == "silent" and found["running"] and found["pid"] != first["pid"]
    # One that says that it sends is left alone.
    settings = json.loads((tmp_path / "sampler.json").read_text())
    (tmp_path / "sampler.json").write_text(json.dumps(settings | {"acknowledge_interval_seconds": 3600}))
    assert node.modules.telemetry.revive(config)["revived"] is None


def test_an_acknowledgement_of_another_minion_is_not_taken(node: Any, tmp_path: Path) -> None:
    assert node.modules.telemetry.acknowledge({"node1": {"boot": "b", "sequence": 1}}) is False
    assert not (tmp_path / "telemetry" / "acknowledged.json").exists()


def test_starting_without_a_program_says_what_to_do(node: Any) -> None:
    with pytest.raises(RuntimeError, match=r"state\.apply sampler"):
        node.modules.telemetry.start("/nowhere/sampler.json")


def state(node: Any, test: bool) -> dict[str, Any]:
    """Return the state's functions over this node's modules; the state runner would load its own."""
    namespace: dict[str, Any] = {"__salt__": node.modules, "__opts__": {"test": test}}
    exec(compile((REPOSITORY / "_states" / "telemetry.py").read_text(), "telemetry.py", "exec"), namespace)
    return namespace


def test_the_state_starts_once_and_test_changes_nothing(node: Any, tmp_path: Path) -> None:
    config = str(tmp_path / "sampler.json")
    would = state(node, test=True)["running"](config)
    assert (would["result"], would["changes"]) == (None, {"sampler": "started"})
    assert node.modules.telemetry.status()["running"] is False
    first = state(node, test=False)["running"](config)
    assert (first["result"], first["changes"]) == (True, {"sampler": "started"})
    pid = node.modules.telemetry.status()["pid"]
    again = state(node, test=False)["running"](config)
    assert (again["result"], again["changes"]) == (True, {})
    assert state(node, test=True)["mod_watch"](config)["result"] is None
    assert node.modules.telemetry.status()["pid"] == pid
    changed = state(node, test=False)["mod_watch"](config, sfun="running")
    assert (changed["result"], changed["changes"]) == (True, {"sampler": "restarted"})
    assert node.modules.telemetry.status()["pid"] != pid


# -- the runner


@pytest.fixture
def runners(tmp_path: Path) -> Any:
    opts: dict[str, Any] = salt.config.master_config(None)
    opts.update(
        {
            "cluster_profile": str(run_builder.PROFILE),
            "cluster_store": str(tmp_path / "store.db"),
            "cluster_directory": str(tmp_path),
            "module_dirs": [str(REPOSITORY)],
            "extension_modules": str(tmp_path / "ext"),
            "sock_dir": str(tmp_path / "sock"),
            "cachedir": str(tmp_path / "cache"),
        }
    )
    (tmp_path / "ceilings.json").write_text(json.dumps(run_builder.ceilings(SHAPE)))
    record = deployment_record(load_profile(run_builder.PROFILE), "tp2")
    (tmp_path / "deployment.json").write_text(json.dumps(record))
    with Store(tmp_path / "store.db") as store:
        for batch in run_builder.batches(SHAPE, "m", random.Random(1)):
            store.put_batches([batch])
    return salt.loader.runner(opts)


def window(index: int) -> dict[str, Any]:
    start = run_builder.STARTED + 10 * index
    return {"window": str(index), "start": start, "end": start + 10, "nodes": list(run_builder.NODES)}


def test_a_window_becomes_a_verdict_that_knows_since_when_it_is_this_one(runners: Any, tmp_path: Path) -> None:
    first = runners["telemetry.aggregate"](window(0))
    assert first["class"] and (first["since"], first["before"]) == (window(0)["start"], None)
    again = runners["telemetry.aggregate"](window(1))
    assert (again["class"], again["since"], again["before"]) == (first["class"], window(0)["start"], None)
    with Store(tmp_path / "store.db") as store:
        latest = store.latest_verdict()
        assert latest is not None and latest["window"]["deployment"] == "tp2"
        other = {**latest["verdict"], "class": "kv_cache", "where": {"node": "node1", "link": None}}
        store.put_verdict({**latest["window"], "window": "x", "end": window(1)["end"] + 1}, other)
    changed = runners["telemetry.aggregate"](window(2))
    named = {"class": "kv_cache", "node": "node1", "link": None}
    assert (changed["since"], changed["before"]) == (window(2)["start"], named)
    late = {**window(2), "window": "late", "start": window(2)["start"] + 1, "end": window(2)["end"] + 1}
    following = runners["telemetry.aggregate"](late)
    assert (following["class"], following["since"], following["before"]) == (changed["class"], changed["since"], named)
    assert len(runners["telemetry.history"]()["verdicts"]) == 5


def test_a_start_that_waits_for_storage_is_named_while_it_lasts(runners: Any, tmp_path: Path) -> None:
    began = run_builder.STARTED + 2000.0
    record = {**deployment_record(load_profile(run_builder.PROFILE), "tp2"), "began": began}
    (tmp_path / "starting.json").write_text(json.dumps(record))
    windows = [{"window": str(at), "start": began + at, "end": began + at + 10} for at in (-5, 10, 20)]
    with Store(tmp_path / "store.db") as store:
        for second in range(40):
            slow = {"storage_wait_s": 0.7 * second, "storage_read_bytes": 4e6 * second, "cpu_user_s": 0.2 * second}
            sample = {"t": began + second, "cpu": {"0": [0.2 * second] + [0.0] * 5}, "workers": {"tp2-0": slow}}
            edges = {"t0": began + second, "t1": began + second + 1}
            batch = {"node": "node0", "boot": "s", "sequence": second + 1, "samples": [sample], **edges}
            store.put_batches([batch])
    before, first, second_window = (runners["telemetry.aggregate"](each) for each in windows)
    assert before["class"] is None, "it had not begun when the window did"
    assert (first["class"], first["node"]) == ("weight_loading", "node0")
    assert second_window["since"] == first["since"] == began
    with Store(tmp_path / "store.db") as store:
        latest = store.latest_verdict()
    assert latest is not None and latest["verdict"]["interval"]["start"] == began, "all of the start so far"
    (tmp_path / "starting.json").write_text(json.dumps({**record, "ended": began + 15}))
    assert runners["telemetry.aggregate"](windows[2])["class"] is None, "it was given up"


def test_a_sealed_window_that_the_reactor_hands_over_becomes_a_verdict(runners: Any, tmp_path: Path) -> None:
    """From the engine's event over what the reactor renders to the store, through Salt's own loaders."""
    tag = cluster_view.WINDOW_TAG
    event = internal_events.sealed({"cluster_directory": str(tmp_path)}, tag, window(0))
    ((_, call),) = rendered(tag, {**event, "_stamp": "2026-11-27T12:00:00.000000"}).items()
    ((called, (parts,)),) = call.items()
    assert called == "runner.internal.take"
    arguments = {key: value for part in parts["args"] for key, value in part.items()}
    assert runners["internal.take"](**arguments)["class"]
    arguments["event"] = {**arguments["event"], "sealed": json.dumps(window(1))}
    with pytest.raises(CommandExecutionError, match="not the control node's own"):
        runners["internal.take"](**arguments)
    with Store(tmp_path / "store.db") as store:
        assert [each["window"]["window"] for each in store.verdict_history()] == ["0"]


def test_a_window_without_an_engine_has_no_verdict(runners: Any) -> None:
    assert runners["telemetry.aggregate"](window(1000))["class"] is None


@pytest.mark.parametrize(
    "odd",
    [
        *({}, None, {"start": "now", "end": 1}, {"start": 0, "end": 1e9}, {"start": 0.0, "end": float("nan")}),
        {"start": run_builder.STARTED, "end": run_builder.STARTED + 3600},
        {"start": 4e9, "end": 4e9 + 10},
        {"start": 1e300, "end": 1e300 + 10},
    ],
)
def test_a_forged_window_is_refused(runners: Any, odd: Any) -> None:
    with pytest.raises(CommandExecutionError):
        runners["telemetry.aggregate"](odd)


def test_an_interval_is_exported_whole(runners: Any, tmp_path: Path) -> None:
    from bottleneck.telemetry.batches import read_batches

    path = tmp_path / "run" / "samples.jsonl.gz"
    found = runners["telemetry.export"](run_builder.STARTED, run_builder.STARTED + 5, str(path))
    batches, problems = read_batches(path)
    assert problems == []
    assert found["batches"] == len(batches) == sum(found["nodes"].values()) >= 10
    assert list(path.parent.iterdir()) == [path]


def test_latest_and_status_are_plain_data(runners: Any) -> None:
    latest = runners["telemetry.latest"]()
    assert json.loads(json.dumps(latest))["nodes"]["node0"]["up"] is False
    assert latest["nodes"]["node0"]["age_seconds"] > 1
    status = json.loads(json.dumps(runners["telemetry.status"]()))
    assert status["nodes"]["node0"]["last_seen"] > run_builder.STARTED
    assert status["exporter"] == {"address": "10.77.0.1", "port": 9477}


# -- the reactor


def reactions() -> dict[str, list[str]]:
    entries = yaml.safe_load((REPOSITORY / "reactor" / "reactor.conf").read_text())["reactor"]
    return {tag: files for entry in entries for tag, files in entry.items()}


def rendered(tag: str, data: dict[str, Any]) -> Any:
    """Return what the reactor makes of an event."""
    opts = dict(salt.config.master_config(None))
    renderers = salt.loader.render(opts, salt.loader.minion_mods({**salt.config.minion_config(None), "id": "x"}))
    (name,) = reactions()[tag]
    return salt.template.compile_template(
        str(REPOSITORY / "reactor" / name), renderers, "jinja|yaml", [], [], tag=tag, data=data
    )


def test_every_reaction_has_its_file_and_is_short() -> None:
    files = {name for names in reactions().values() for name in names}
    assert files == {path.name for path in (REPOSITORY / "reactor").glob("*.sls")}
    for name in files:
        text = (REPOSITORY / "reactor" / name).read_text()
        assert len(text.splitlines()) <= 15
        assert "wheel" not in text and "salt.key" not in text, "a reactor never touches a key"


@pytest.mark.parametrize(
    ("tag", "data", "function", "arguments"),
    [
        *(
            (
                tag,
                {"node": "node0", "since": 1e-05, "sealed": '{"since": 1e-05}'},
                "internal.take",
                [{"tag": tag}, {"event": {"node": "node0", "since": "1e-05", "sealed": '{"since": 1e-05}'}}],
            )
            for tag in internal_events.ACTIONS
        ),
        (
            "salt/minion/*/start",
            {"id": 'node0"\n  x: {{ 7 }}', "data": "up"},
            "cluster.node_started",
            [{"minion": 'node0"\n  x: {{ 7 }}'}],
        ),
    ],
)
def test_a_reaction_calls_one_runner(
    runners: Any, tag: str, data: dict[str, Any], function: str, arguments: list[Any]
) -> None:
    ((_, call),) = rendered(tag, data).items()
    ((called, parts),) = call.items()
    assert called == f"runner.{function}"
    assert json.loads(json.dumps(parts)) == [{"args": arguments}]
    assert f"{function}" in runners
