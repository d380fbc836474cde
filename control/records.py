"""Keep the control node's records of the cluster: JSON documents in its own directory, each whole or not there."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from salt.exceptions import CommandExecutionError

from bottleneck import atomic_files
from bottleneck.json_files import JsonFileError, first_fault, read_json
from bottleneck.plan.workers import DeploymentRecord

# The master's options.
Options = Mapping[str, Any]

DEPLOYMENT = "deployment.json"
# Of a deployment that is starting, or that failed to: it can be asked about while it lasts, and after.
STARTING = "starting.json"
CEILINGS = "ceilings.json"
REPROVISION = "reprovision.json"
# Restarts of the last hour, and a deployment that was given up.
RECOVERY = "recovery.json"
# There while the cluster does nothing by itself.
PAUSED = "paused.json"
# A folder: the boot service's own record, and the orders that it is given.
BOOT = "boot"
# What writes a record anew.
_NEXT = {
    DEPLOYMENT: "cluster undeploy, then cluster deploy",
    STARTING: "cluster undeploy, then cluster deploy",
    CEILINGS: "cluster probe",
    REPROVISION: "take the file away, then cluster reprovision",
    RECOVERY: "cluster undeploy, then cluster deploy",
    PAUSED: "cluster pause",
}


_Form = TypeVar("_Form")
_OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


class RecordError(CommandExecutionError):  # type: ignore[misc]  # Salt is not typed
    """A record is there and cannot be used; the text names the file, what is wrong, and the next command."""


def path_of(opts: Mapping[str, Any], name: str) -> Path:
    """Return where a record is, or a folder of them; `opts` are the master's."""
    return Path(opts["cluster_directory"], name)


def read(opts: Mapping[str, Any], name: str) -> dict[str, Any]:
    """
    Return a record; an empty dict when there is none.

    Raises ``RecordError`` when it cannot be read: nothing may be concluded from that.
    """
    return read_as(path_of(opts, name), _OBJECT, _remedy(name)) or {}


def read_as(path: Path, form: TypeAdapter[_Form], remedy: str) -> _Form | None:
    """
    Return what a record holds; None when there is none.

    Raises ``RecordError`` with the remedy when it cannot be read or is not in that form.
    """
    try:
        return read_json(path, form)
    except JsonFileError as error:
        raise RecordError(f"{error}; {remedy}") from error


def deployment(record: Mapping[str, Any], name: str = DEPLOYMENT) -> DeploymentRecord:
    """
    Return the record of a deployment, or of one that starts, as a ``DeploymentRecord``.

    Raises when there is none, and ``RecordError`` when it is not in that form.
    """
    if not record:
        raise CommandExecutionError("nothing is deployed; deploy it first: cluster deploy")
    try:
        return DeploymentRecord.model_validate(record)
    except ValidationError as error:
        raise RecordError(f"{name}: {first_fault(error)}; {_remedy(name)}") from error


def _remedy(name: str) -> str:
    return f"write it anew with: {_NEXT[name]}"


def write(opts: Mapping[str, Any], name: str, content: Mapping[str, Any]) -> None:
    """Put a record in the place of the one before."""
    path = path_of(opts, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A deployment that nobody knows of after a crash would be started a second time.
    atomic_files.replace_json(path, content, durable=True)


def forget(opts: Mapping[str, Any], name: str) -> None:
    """Remove a record, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        path_of(opts, name).unlink()
