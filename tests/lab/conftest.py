"""One lab, configured once, for every test that needs a real cluster."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

LAB = f"test-{os.getpid()}"
CLUSTER = str(Path(sys.executable).with_name("cluster"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.lab)


class Cluster:
    """The `cluster` command against one lab."""

    def __init__(self, lab: str, runs: Path) -> None:
        self.lab = lab
        self.runs = runs

    def run(self, *arguments: str, check: bool = True, timeout: float = 900) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "CLUSTER_LAB": self.lab, "CLUSTER_RUNS": str(self.runs), "COLUMNS": "200"}
        finished = subprocess.run(
            [CLUSTER, *arguments], env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and finished.returncode:
            raise AssertionError(
                f"cluster {' '.join(arguments)} ended with {finished.returncode}:\n{finished.stdout}\n{finished.stderr}"
            )
        return finished

    def json(self, *arguments: str, timeout: float = 900) -> Any:
        return json.loads(self.run(*arguments, "--json", timeout=timeout).stdout)

    def on(self, node: str, *command: str, check: bool = True, timeout: float = 300) -> str:
        """Run a command inside a node's namespaces and return its standard output."""
        return self.run("lab", "exec", node, "--", *command, check=check, timeout=timeout).stdout

    def stages(self) -> dict[str, str]:
        """Return the stage of each deployed worker by its node, without those of earlier deployments."""
        status = self.json("status")
        return {
            worker["node"]: status["nodes"][worker["node"]]["workers"][worker["name"]]["stage"]
            for worker in status["deployment"]["workers"]
        }

    def key(self) -> str:
        """Return the key of the deployed engines' API."""
        return str(self.json("endpoint", "--key")["key"])

    def refuses_strangers(self) -> bool:
        """Tell whether gateway and engine take requests with the API's key alone, which no command line has."""
        endpoint, key = self.json("endpoint"), self.key()
        urls = [f"{url}/completions" for url in (endpoint["url"], endpoint["heads"][0])]
        body = json.dumps({"prompt": "a", "max_tokens": 1, "model": "mistral-tiny-w4a16"})
        ask = ("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-d", body)
        json_body = ("-H", "Content-Type: application/json")
        bearers: tuple[list[str], ...] = (
            [],
            ["-H", "Authorization: Bearer another"],
            ["-H", f"Authorization: Bearer {key}"],
        )
        seen = [[self.on("control", *ask, *json_body, *bearer, url).strip() for bearer in bearers] for url in urls]
        shown = self.on("node0", "ps", "-eo", "args") + self.on("control", "ps", "-eo", "args")
        return seen == [["401", "401", "200"]] * 2 and key not in shown

    def users(self, node: str, program: str) -> set[str]:
        """Return whose processes of a node run a program, by the words of their command lines."""
        lines = [line.split() for line in self.on(node, "ps", "-eo", "user:32,args").splitlines()]
        return {user for user, *words in lines if any(word.rpartition("/")[2] == program for word in words[:2])}


@pytest.fixture(scope="session")
def bare_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A lab that is up; its nodes are bare."""
    if os.geteuid() != 0:
        pytest.skip("the lab is made of namespaces, which needs root")
    cluster = Cluster(LAB, tmp_path_factory.mktemp("runs"))
    try:
        cluster.run("lab", "up", LAB, "--owner", str(os.getpid()), timeout=180)
        yield cluster
    finally:
        cluster.run("lab", "down", LAB, check=False, timeout=120)


@pytest.fixture(scope="session")
def configured(bare_lab: Cluster) -> Cluster:
    """The lab after `cluster apply`."""
    bare_lab.run("apply", timeout=1800)
    return bare_lab


@pytest.fixture
def deployed(configured: Cluster) -> Iterator[Callable[..., Cluster]]:
    """A function that deploys; what it deployed is stopped after the test."""

    def deploy(name: str, *settings: str) -> Cluster:
        configured.run("undeploy", timeout=180)
        options = [part for setting in settings for part in ("--set", setting)]
        configured.run("deploy", name, *options, timeout=700)
        return configured

    yield deploy
    configured.run("lab", "throttle", "direct", "--restore", check=False)
    configured.run("undeploy", check=False, timeout=180)
