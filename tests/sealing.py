"""Seal as a node would, with the key that the control node of a test gave it; and answer for nodes without a master."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import salt.payload

from bottleneck import node_seal
from control import node_keys, sealed_answers


def event(folder: Path, node: str, batches: Any, sender: object = None) -> dict[str, Any]:
    """Return an event's data with batches that a node sealed; node and minion have one name."""
    text = json.dumps(batches)
    key = node_keys.key_of({"cluster_directory": folder}, node)
    sealed = {"text": text, "seal": node_seal.seal(key, node_seal.BATCHES, node, text)}
    return {"id": node if sender is None else sender, "data": sealed}


def answer(key: bytes, minion: str, **content: Any) -> str:
    """Return what the executor on a node makes of an answer."""
    text = base64.b64encode(salt.payload.dumps({"minion": minion, **content})).decode()
    return f"{sealed_answers.EXECUTOR}:{node_seal.seal(key, node_seal.ANSWER, minion, text)}:{text}"


class Failed:
    """An answer of a function that raised."""

    def __init__(self, text: str) -> None:
        self.text = text


def nodes_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a stand-in for Salt's client answer for nodes: what its `cmd` returns counts as sealed."""

    def ask(
        _opts: Any, client: Any, minions: Iterable[str], function: str, arguments: Sequence[Any] = (), **_: Any
    ) -> Iterator[sealed_answers.Answer]:
        hosts = list(minions)
        for host, found in client.cmd(hosts, function, arguments).items():
            if host in hosts:
                failed = isinstance(found, Failed)
                yield sealed_answers.Answer(host, found.text if failed else found, failed)

    def present(opts: Any, client: Any, minions: Iterable[str], _timeout: float) -> set[str]:
        return {each.minion for each in ask(opts, client, minions, "test.ping") if each.content is True}

    monkeypatch.setattr(sealed_answers, "ask", ask)
    monkeypatch.setattr(sealed_answers, "present", present)
    monkeypatch.setattr(sealed_answers, "introduce", present)
