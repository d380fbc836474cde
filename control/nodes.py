"""Reach the profile's nodes from the control node: by their names, through Salt."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import salt.client
from salt.exceptions import CommandExecutionError

from bottleneck.profile import Profile, ProfileError, load_profile
from bottleneck.profile.types import EngineSpec
from control import sealed_answers
from control.records import Options as Options

CALL_SECONDS = 60


def profile_of(opts: Options) -> Profile:
    """Return the profile that this master was started with.

    Raises
    ------
    CommandExecutionError
        With the profile's problems, one a line.
    """
    try:
        return load_profile(opts["cluster_profile"])
    except ProfileError as error:
        raise CommandExecutionError(str(error)) from error


def progress(stage: str, node: str, detail: str, started: float, **more: object) -> None:
    """Report one step of a runner, as a line on standard error that the CLI reads.

    Parameters
    ----------
    started : float
        When the runner began, of `time.monotonic`.
    """
    report = {"stage": stage, "node": node, "detail": detail, "seconds": round(time.monotonic() - started, 1), **more}
    print("@progress " + json.dumps(report), file=sys.stderr, flush=True)


class Nodes:
    """The nodes of one profile; every function takes and returns node names, never minion ids.

    Parameters
    ----------
    opts : mapping
        The master's options.
    profile : Profile, optional
        When it is at hand already.
    """

    def __init__(self, opts: Options, profile: Profile | None = None) -> None:
        self._opts = opts
        self.profile = profile or profile_of(opts)
        self._client: Any = None

    @property
    def options(self) -> Options:
        """The master's options."""
        return self._opts

    @property
    def names(self) -> list[str]:
        """The nodes, in the profile's order."""
        return list(self.profile.nodes)

    @property
    def client(self) -> Any:
        """Salt's client on this master."""
        if self._client is None:
            self._client = salt.client.LocalClient(mopts=self._opts)
        return self._client

    def minion(self, name: str) -> str:
        """Return the minion id of a node."""
        if name not in self.profile.nodes:
            raise CommandExecutionError(
                f"no node {name} in profile {self.profile.name}: expected {', '.join(self.profile.nodes)}"
            )
        return self.profile.nodes[name].hostname

    def ask(
        self,
        function: str | Sequence[str],
        arguments: Sequence[Any] = (),
        names: Iterable[str] | None = None,
        timeout: float = 15,
    ) -> dict[str, Any]:
        """Call a function on nodes side by side; return what each answered and sealed, None where it was silent.

        Of several functions, given with a list of arguments each, a node's answer is a dict by function.
        """
        minions = {name: self.minion(name) for name in (names or self.names)}
        if isinstance(function, str):
            answers = self._sealed(minions.values(), function, arguments, timeout)
            return {name: answers.get(minion) for name, minion in minions.items()}
        found: dict[str, dict[str, Any]] = {}
        for each, own in zip(function, arguments, strict=True):
            for minion, answer in self._sealed(minions.values(), each, own, timeout).items():
                found.setdefault(minion, {})[each] = answer
        return {name: found.get(minion) for name, minion in minions.items()}

    def _sealed(
        self, minions: Iterable[str], function: str, arguments: Sequence[Any], timeout: float
    ) -> dict[str, Any]:
        answers = sealed_answers.ask(self._opts, self.client, minions, function, arguments, timeout=timeout)
        return {answer.minion: answer.content for answer in answers}

    def answering(self, names: Iterable[str] | None = None, timeout: float = 15) -> set[str]:
        """Return the set of nodes whose minion is there."""
        minions = {self.minion(name): name for name in (self.names if names is None else names)}
        return {minions[minion] for minion in sealed_answers.present(self._opts, self.client, minions, timeout)}

    def introduce(self, names: Iterable[str], timeout: float = CALL_SECONDS) -> set[str]:
        """Have nodes take over our modules and their keys; return those that answer with them now."""
        minions = {self.minion(name): name for name in names}
        return {minions[minion] for minion in sealed_answers.introduce(self._opts, self.client, minions, timeout)}

    def ask_workers(
        self, names: Iterable[str] | None = None, timeout: float = 15
    ) -> dict[str, dict[str, dict[str, Any]] | None]:
        """Return what ``worker.status`` answers on each node; None where a node is silent or has no answer.

        A node may answer anything: what is no worker's status is left out.
        """
        answers = self.ask("worker.status", names=names, timeout=timeout)
        return {
            name: {worker: found for worker, found in answer.items() if isinstance(found, dict)}
            if isinstance(answer, dict)
            else None
            for name, answer in answers.items()
        }

    def call(self, name: str, function: str, arguments: Sequence[object] = (), timeout: float = CALL_SECONDS) -> Any:
        """Call a function on one node and return its result; errors as `call_together`."""
        return self.call_together({name}, function, arguments, timeout)[name]

    def call_together(
        self,
        names: Iterable[str],
        function: str,
        arguments: Sequence[object] = (),
        timeout: float = CALL_SECONDS,
        on_answer: Callable[[str], None] | None = None,
    ) -> dict[str, Any]:
        """Call a function on several nodes; return each one's result.

        Raises
        ------
        CommandExecutionError
            At the first node that fails, without waiting for the others, or when one does not answer.
        """
        waiting = {self.minion(name): name for name in names}
        found: dict[str, Any] = {}
        answers = sealed_answers.ask(self._opts, self.client, list(waiting), function, arguments, timeout=timeout)
        with contextlib.closing(answers):
            for answer in answers:
                name = waiting.pop(answer.minion)
                if answer.failed:
                    raise CommandExecutionError(f"{name}: {_last_line(answer.content)}")
                found[name] = answer.content
                if on_answer is not None:
                    on_answer(name)
        if waiting:
            raise CommandExecutionError(f"{', '.join(sorted(waiting.values()))} did not answer {function}")
        return found


def engine_slice(engine: EngineSpec) -> dict[str, Any]:
    """Return what a node's modules need to know of its engine: where it is and how it is started."""
    return {
        "directory": engine.directory(),
        "preload": list(engine.preload),
        "environment": dict(engine.environment),
        "root_folder": engine.root_folder is not None,
    }


def _last_line(returned: object) -> str:
    lines = [line.strip() for line in str(returned).splitlines() if line.strip()]
    return lines[-1].partition("Error: ")[2] or lines[-1] if lines else "it failed without a reason"
