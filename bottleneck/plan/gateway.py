"""Render the gateway's side: HAProxy's configuration, by the profile, with the heads of every deployment.

Which of them take requests is no part of it: heads that serve pass their health check, and `control.gateway` says which
are in maintenance or take nothing new.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from bottleneck.plan.nodes import worker_specs
from bottleneck.profile.paths import repository_directory

if TYPE_CHECKING:
    from bottleneck.profile import Profile

DIRECTORY = Path("/etc/cluster/gateway")
CONFIGURATION, LUA = "haproxy.cfg", "wait_for_head.lua"
# Of the control node's own state, in its unit's folder.
SOCKET = "/run/cluster-gateway/admin.sock"
MOST_CONNECTIONS = 2000
# How long a request waits for a head: the restart after the first failure of an hour takes about 45 s.
WAIT_SECONDS = 120
# No answer, and no pause within one, takes longer.
LONGEST_SECONDS = 3600
RETRY_SECONDS = 10

NO_HEAD = "no head serves now; on the control node or the laptop: cluster status"
NO_KEY = "the key of the API is missing or wrong; expected Authorization: Bearer KEY (cluster endpoint)"
_ERRORS = (
    (502, "bad_gateway", "the head ended before it had answered; send the request again (cluster status)"),
    (503, "unavailable", NO_HEAD),
    (504, "timeout", f"the head did not answer in {LONGEST_SECONDS} s (cluster status)"),
)


def heads(profile: Profile) -> dict[str, str]:
    """Return node -> address and port, of each node that is the head of a replica of any deployment.

    Parameters
    ----------
    profile : Profile
        Profile of the cluster.
    """
    specs = (spec for name in profile.deployments for spec in worker_specs(profile, name) if spec.head)
    found = {spec.node: f"{spec.api_address}:{spec.api_port}" for spec in specs}
    return dict(sorted(found.items()))


def configuration(
    profile: Profile, key_file: str, directory: Path = DIRECTORY, socket: str = SOCKET, wait_seconds: int = WAIT_SECONDS
) -> str:
    """Return HAProxy's configuration.

    Parameters
    ----------
    profile : Profile
        Profile of the cluster.
    key_file : str
        File with the API's key, as the service finds it.
    directory : Path
        Where the file beside it is.
    socket : str
        Where it takes commands, from root.
    wait_seconds : int
        How long a request waits for a head.
    """
    # Here, for commands of a lab import this module and render nothing.
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)  # noqa: S701
    return environment.from_string(_file("haproxy.cfg.j2")).render(
        profile=profile.name,
        version=profile.version,
        address=profile.control.address,
        port=profile.control.gateway_port,
        heads=heads(profile),
        key_file=key_file,
        lua=directory / LUA,
        socket=socket,
        most_connections=MOST_CONNECTIONS,
        wait_seconds=wait_seconds,
        longest_seconds=LONGEST_SECONDS,
        retry_seconds=RETRY_SECONDS,
        errors=_ERRORS,
        no_head=NO_HEAD,
        no_key=NO_KEY,
        error=_error,
    )


def files(profile: Profile, key_file: str, directory: Path = DIRECTORY) -> dict[Path, str]:
    """Return the files of the gateway, path -> text.

    Parameters
    ----------
    profile, key_file, directory : Profile, str, Path
        As in `configuration`.
    """
    return {
        directory / CONFIGURATION: configuration(profile, key_file, directory),
        directory / LUA: _file(LUA),
    }


def _error(kind: str, text: str) -> str:
    """Return an error as OpenAI's clients read it."""
    return json.dumps({"error": {"message": text, "type": kind, "code": None, "param": None}})


def _file(name: str) -> str:
    return (repository_directory() / "salt" / "control" / "files" / name).read_text(encoding="utf-8")
