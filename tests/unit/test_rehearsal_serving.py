"""The rehearsal's stages of serving fail when what they look at is not as it should be; a laptop answers for it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bottleneck.profile import load_profile
from bottleneck.profile.types import Profile
from rehearsal.debian import REPOSITORY
from rehearsal.laptop import CommandError
from rehearsal.serving import Serving

WORKER = "cluster-worker-layers2-0.service"
LISTED = f"UNIT EXPOSURE PREDICATE HAPPY\n{WORKER} 4.1 OK :-)\ncluster-sampler.service 3.5 OK :-)\n"
# As nft 1.1.3 of Debian 13 listed it on a node.
OPENED = "\t\ttcp dport 50052 tcp flags & (fin | syn | rst | ack) == syn"
RULE = f"{OPENED} ip saddr != 10.97.1.10 counter packets 0 bytes 0 drop"
OPEN = {"4505": "open", "4506": "open", "9477": "open", "8069": "open", "22": "TimeoutError", "9090": "TimeoutError"}


class Laptop:
    """Answers commands as a cluster that is well does; what a test changes, it changes here."""

    def __init__(self, log: Path) -> None:
        self.log = log

        def both(answer: object) -> dict[str, Any]:
            return {name: copy.copy(answer) for name in ("node0", "node1")}

        self.nodes: dict[str, dict[str, Any]] = {
            "/usr/bin/python3": both(json.dumps(OPEN)),
            "telemetry.status": both({"running": True, "acknowledged": 40}),
            "--state=active": both(f"salt-minion.service loaded active running x\n{WORKER} loaded active running x\n"),
            "--state=failed": both(""),
            "systemd-analyze": both(LISTED),
            "ss -Hltn": {
                "node0": "LISTEN 0 512 10.97.0.10:8000 0.0.0.0:*\n",
                "node1": "LISTEN 0 1 10.97.1.11:50052 0.0.0.0:*\n",
            },
            "nft": {"node0": "", "node1": RULE},
            "ps -eo": both("systemd\nsalt-minion\n"),
        }
        stage = {"layers2-0": {"stage": "ready"}}
        boot = {
            "began": 100.0,
            "stages": [
                {"stage": "dhcp", "start": 100.0, "seconds": 60.0},
                {"stage": "first_token", "start": 160.0, "seconds": 30.0},
            ],
        }
        headline = {"completed": 6, "failed": 0, "output_tokens_per_second": 9.5, "ttft_seconds": {"median": 0.5}}
        verdict = {"class": "balanced", "confidence": 0.5, "title": "Nothing stands out", "ledger": {"entries": [{}]}}
        self.documents: dict[str, Any] = {
            "deploy": {"seconds": 30.0},
            "status": {"nodes": {name: {"workers": stage} for name in ("node0", "node1")}},
            "bench": {"run": "r1", "points": [{"headline": headline}], "problems": []},
            "bottleneck": {"verdict": verdict},
            "boot": {"nodes": {name: {"boot": copy.deepcopy(boot)} for name in ("node0", "node1")}},
        }
        self.asked: list[tuple[str, ...]] = []

    def cluster(self, *arguments: str, timeout: float) -> str:
        assert timeout > 0
        self.asked.append(arguments)
        if arguments[0] != "salt":
            return ""
        (found,) = (answer for words, answer in self.nodes.items() if words in " ".join(arguments))
        return json.dumps(found)

    def cluster_json(self, *arguments: str, timeout: float) -> Any:
        assert timeout > 0
        self.asked.append(arguments)
        return self.documents[arguments[0]]


@pytest.fixture
def laptop(tmp_path: Path) -> Laptop:
    return Laptop(tmp_path / "log")


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    for source in (REPOSITORY / "rehearsal" / "profile").iterdir():
        (tmp_path / source.name).write_text(source.read_text().replace("PORT", "4711"))
    return load_profile(tmp_path / "v1.yaml")


@pytest.fixture
def serving(laptop: Laptop, profile: Profile) -> Serving:
    return Serving(laptop, profile)  # type: ignore[arg-type]


def test_a_cluster_that_is_well_passes(serving: Serving, laptop: Laptop) -> None:
    assert serving.firewall() == "4 ports open, 2 closed; batches acknowledged: node0 40, node1 40"
    assert "node0 layers2-0, node1 layers2-0 ready after 30 s" in serving.deploy()
    assert f"node1: cluster-sampler.service 3.5, {WORKER} 4.1" in serving.units()
    assert serving.listens() == "the API on 10.97.0.10:8000, layers of node1 on direct alone"
    assert serving.bench() == "6 requests, 9.5 tokens/s, first token after 0.50 s (median)"
    assert serving.bottleneck() == "balanced (50%): Nothing stands out"
    assert ("bottleneck", "r1") in laptop.asked
    assert serving.first_token() == "node0 90 s; node1 90 s"
    assert "| `first_token` | 30.0 | 90.0 | 30.0 | 90.0 |" in laptop.log.read_text()
    assert serving.undeploy() == "no process of the engine is left"


def ports(laptop: Laptop) -> None:
    laptop.nodes["/usr/bin/python3"]["node1"] = json.dumps({**OPEN, "9477": "TimeoutError"})


def acknowledged(laptop: Laptop) -> None:
    laptop.nodes["telemetry.status"]["node0"] = {"running": True, "acknowledged": 0}


def silent(laptop: Laptop) -> None:
    laptop.nodes["telemetry.status"]["node0"] = False


def loading(laptop: Laptop) -> None:
    laptop.documents["status"]["nodes"]["node1"] = {"workers": {"layers2-0": {"stage": "loading"}}}


def missing(laptop: Laptop) -> None:
    laptop.documents["status"]["nodes"]["node1"] = {"workers": {}}


def dead_unit(laptop: Laptop) -> None:
    laptop.nodes["--state=active"]["node1"] = "salt-minion.service loaded active running x\n"


def failed_unit(laptop: Laptop) -> None:
    laptop.nodes["--state=failed"]["node0"] = f"{WORKER} loaded failed failed x\n"


def no_score(laptop: Laptop) -> None:
    laptop.nodes["systemd-analyze"]["node0"] = "salt-minion.service 9.6 UNSAFE x\n"


def everywhere(laptop: Laptop) -> None:
    laptop.nodes["ss -Hltn"]["node1"] = "LISTEN 0 1 0.0.0.0:50052 0.0.0.0:*\n"


def unguarded(laptop: Laptop) -> None:
    laptop.nodes["nft"]["node1"] = ""


def open_to_others(laptop: Laptop) -> None:
    laptop.nodes["nft"]["node1"] = RULE.replace("10.97.1.10", "{ 10.97.1.10, 10.97.1.12 }")


def lost_requests(laptop: Laptop) -> None:
    laptop.documents["bench"] |= {"points": [{"headline": {"completed": 5, "failed": 1}}], "first_error": "refused"}


def empty_ledger(laptop: Laptop) -> None:
    laptop.documents["bottleneck"]["verdict"]["ledger"] = {"entries": []}


def no_token(laptop: Laptop) -> None:
    laptop.documents["boot"]["nodes"]["node1"]["boot"]["stages"].pop()


def left_over(laptop: Laptop) -> None:
    laptop.nodes["ps -eo"]["node1"] = "systemd\n/usr/libexec/x/ggml-rpc-server -H 10.97.1.11\n"


@pytest.mark.parametrize(
    ("change", "stage", "words"),
    [
        (ports, "firewall", "node1: the samplers' acknowledgements .port 9477.: TimeoutError"),
        (acknowledged, "firewall", "nothing of the sampler was acknowledged: node0"),
        (silent, "firewall", "telemetry.status: no answer of node0"),
        (loading, "deploy", 'expected one ready worker on each node.*"node1 layers2-0": "loading"'),
        (missing, "deploy", "expected one ready worker on each node"),
        (dead_unit, "units", "node1: no unit cluster-worker-. runs, only salt-minion.service"),
        (failed_unit, "units", f"node0: failed: {WORKER}"),
        (no_score, "units", "no score of the worker on node0"),
        (everywhere, "listens", "node1 does not listen on 10.97.1.11:50052 alone"),
        (unguarded, "listens", "node1 has no rule that lets only 10.97.1.10 in"),
        (open_to_others, "listens", "node1 has no rule that lets only 10.97.1.10 in"),
        (lost_requests, "bench", "5 of 6 requests: refused"),
        (empty_ledger, "bottleneck", "the ledger of the run is empty"),
        (no_token, "first_token", "the record of node1 does not end with the first token"),
        (left_over, "undeploy", "still there: .*node1.*ggml-rpc-server"),
    ],
)
def test_what_is_not_as_it_should_be_fails_its_stage(
    serving: Serving, laptop: Laptop, change: Callable[[Laptop], None], stage: str, words: str
) -> None:
    change(laptop)
    with pytest.raises(CommandError, match=words):
        getattr(serving, stage)()
