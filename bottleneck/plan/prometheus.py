"""Prometheus' side: what it scrapes, by the profile; the alert rules; the dashboard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from bottleneck import atomic_files
from bottleneck.plan.nodes import worker_specs
from bottleneck.profile.engine_interface import NO_METRICS
from bottleneck.profile.paths import repository_directory

if TYPE_CHECKING:
    from bottleneck.profile import Profile

SCRAPE_INTERVAL_SECONDS = 5
RULES, DASHBOARD = "rules.yml", "dashboard.json"
CONFIGURATION = "prometheus.yml"


def targets(profile: Profile, deployment: str | None = None) -> list[dict[str, Any]]:
    """Return Prometheus' static targets of the heads' own metrics.

    Parameters
    ----------
    profile : Profile
        Profile of the cluster.
    deployment : str, optional
        Only its heads; left out, the heads of every deployment, since any of them may be the one that runs.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in [deployment] if deployment else list(profile.deployments):
        for spec in worker_specs(profile, name):
            metrics = spec.watch.metrics
            # An engine without metrics has nothing to scrape.
            if spec.head and metrics.dialect != NO_METRICS:
                address = f"{spec.api_address}:{spec.api_port}"
                labels = {"node": spec.node}
                if metrics.path != "/metrics":
                    labels["__metrics_path__"] = metrics.path
                found[address] = {"targets": [address], "labels": labels}
    return [found[address] for address in sorted(found)]


def configuration(profile: Profile, deployment: str | None = None) -> dict[str, Any]:
    """Return Prometheus' configuration for a cluster.

    Parameters
    ----------
    profile : Profile
        Profile of the cluster.
    deployment : str or None
        Name of the deployment whose engines are scraped; None for the default one.

    Raises
    ------
    ProfileError
        When the deployment is unknown.
    """
    ports = [profile.telemetry.exporter_port]
    if profile.boot:
        # The boot service tells its own record.
        ports.append(profile.boot.port)
    ours = [f"{profile.control.address}:{port}" for port in ports]
    interval = f"{SCRAPE_INTERVAL_SECONDS}s"
    return {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": [RULES],
        "scrape_configs": [
            {
                "job_name": "cluster",
                # The exporters name the node themselves.
                "honor_labels": True,
                "static_configs": [{"targets": [address], "labels": {"cluster": profile.name}} for address in ours],
            },
            {
                # Its own metrics, which it gives to the control node alone.
                "job_name": "gateway",
                "static_configs": [
                    {
                        "targets": [f"{profile.control.address}:{profile.control.gateway_port}"],
                        "labels": {"cluster": profile.name},
                    }
                ],
            },
            {
                "job_name": "engine",
                "static_configs": [
                    {**target, "labels": {**target["labels"], "cluster": profile.name}}
                    for target in targets(profile, deployment)
                ],
            },
        ],
    }


def configuration_text(profile: Profile, deployment: str | None = None) -> str:
    """Return the configuration as the file Prometheus reads.

    Parameters
    ----------
    profile, deployment : Profile, str or None
        As in `configuration`.

    Raises
    ------
    ProfileError
        As in `configuration`.
    """
    text = yaml.safe_dump(configuration(profile, deployment), sort_keys=False)
    return f"# Made from profile {profile.name} {profile.version} by `cluster prometheus config`.\n{text}"


def rules_text() -> str:
    """Return the alert rules."""
    return _file(RULES)


def dashboard_text() -> str:
    """Return the Grafana dashboard."""
    return _file(DASHBOARD)


def write(profile: Profile, directory: Path, deployment: str | None = None) -> list[str]:
    """Write configuration, rules and dashboard into a folder; return the names that changed.

    Parameters
    ----------
    profile
        A profile that was checked.
    directory
        Where they go; made when it is not there.
    deployment
        Whose heads are scraped; None is the default one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    contents = {
        CONFIGURATION: configuration_text(profile, deployment),
        RULES: rules_text(),
        DASHBOARD: dashboard_text(),
    }
    changed = []
    for name, text in contents.items():
        path = directory / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            atomic_files.replace(path, text)
            changed.append(name)
    return changed


def _file(name: str) -> str:
    return (repository_directory() / "salt" / "prometheus" / "files" / name).read_text(encoding="utf-8")
