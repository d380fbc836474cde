"""`cluster prometheus`: what Prometheus and Grafana need to watch a cluster."""

from pathlib import Path
from typing import Annotated

import typer

from bottleneck.plan import prometheus
from bottleneck.profile import Profile, ProfileError, find_profile, load_profile
from cli.options import DEFAULT_PROFILE, ProfileOption
from cli.output import USAGE, console, fail, plain

app = typer.Typer()

OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write to this file instead of stdout.", dir_okay=False)
]


def _profile(name: str) -> Profile:
    try:
        return load_profile(find_profile(name))
    except ProfileError as error:
        fail(str(error), f"cluster profile check {name}", USAGE)


def _give(text: str, output: Path | None) -> None:
    if output is None:
        plain(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"cannot write {output}: {error.strerror}")
    console.print(f"wrote {output}")


@app.command()
def config(
    deployment: Annotated[str | None, typer.Option(help="Scrape only the heads of this deployment.")] = None,
    output: OutputOption = None,
    profile: ProfileOption = DEFAULT_PROFILE,
) -> None:
    """Print Prometheus' configuration: the exporter, and each head's own metrics.

    It reads the rules from `rules.yml` beside it.

    Examples:

      cluster prometheus config --output prometheus.yml
    """
    loaded = _profile(profile)
    try:
        text = prometheus.configuration_text(loaded, deployment)
    except ProfileError as error:
        fail(str(error), "cluster profile show", USAGE)
    _give(text, output)


@app.command()
def rules(output: OutputOption = None) -> None:
    """Print the alert rules.

    Examples:

      cluster prometheus rules --output rules.yml
    """
    _give(prometheus.rules_text(), output)


@app.command()
def dashboard(output: OutputOption = None) -> None:
    """Print the Grafana dashboard.

    Examples:

      cluster prometheus dashboard --output dashboard.json
    """
    _give(prometheus.dashboard_text(), output)
