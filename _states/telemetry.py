"""
Keep this node's sampler running.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loader_dunders import __opts__, __salt__


def __virtual__() -> str:
    return "telemetry"


def running(name: str) -> dict[str, Any]:
    """
    Make sure that the sampler runs; when what it is watched for changes, it starts again.

    name
        its configuration file

    .. code-block:: yaml

        sampler-service-sampler-telemetry-running:
          telemetry.running:
            - name: /etc/cluster/sampler.json
            - watch:
              - file: /etc/cluster/sampler.json
    """
    result: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": "The sampler runs"}
    if __salt__["telemetry.status"]()["running"]:
        return result
    if __opts__["test"]:
        return {**result, "result": None, "changes": {"sampler": "started"}, "comment": "The sampler would be started"}
    return _started(name, "telemetry.start", "started")


def mod_watch(name: str, sfun: str | None = None, **kwargs: object) -> dict[str, Any]:  # noqa: ARG001 (Salt passes them)
    """
    Start the sampler again because its program or its configuration changed.
    """
    if __opts__["test"]:
        return {
            "name": name,
            "result": None,
            "changes": {"sampler": "restarted"},
            "comment": "The sampler would be restarted",
        }
    return _started(name, "telemetry.restart", "restarted")


def _started(name: str, function: str, what: str) -> dict[str, Any]:
    status = __salt__[function](name)
    if status["running"]:
        return {"name": name, "result": True, "changes": {"sampler": what}, "comment": f"The sampler was {what}"}
    return {
        "name": name,
        "result": False,
        "changes": {},
        "comment": f"The sampler ended at once with {status['exit_code']}; see {status['log']}",
    }
