"""The `cluster` command."""

from collections.abc import Callable
from typing import Annotated

import typer

from cli import (
    bench,
    boot,
    bottleneck,
    cluster,
    config,
    config_commands,
    control_commands,
    demo,
    doctor,
    image,
    lab,
    probe,
    profile,
    prometheus,
    report,
    reprovision,
    runs,
    sync,
    top,
    verify,
    whatif,
)

app = typer.Typer(
    name="cluster",
    help="Run one large language model across unlike machines and learn what holds it back.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def settings(
    control: Annotated[
        str | None,
        typer.Option(
            "--control", metavar="[USER@]HOST", help="Control node of a hardware profile.", show_default="control.host"
        ),
    ] = None,
) -> None:
    """Run one large language model across unlike machines and learn what holds it back."""
    config.set_flags({"control.host": (control, "--control")})


for name, room, summary in (
    ("profile", profile.app, "Read and check profiles."),
    ("lab", lab.app, "The embedded cluster: nodes as namespaces on this machine."),
    ("run", runs.app, "List, show and compare recorded runs."),
    ("image", image.app, "The Linux image that the nodes boot: build, compare, make active, go back."),
    ("control", control_commands.app, "The control node, from a laptop."),
    ("config", config_commands.app, "Settings, and where each comes from."),
    ("boot", boot.app, "Boots of the nodes: watch, look at one, expect one."),
    ("node", boot.node_app, "Machines that ask to boot."),
    ("prometheus", prometheus.app, "Scrape configuration, alert rules and dashboard."),
):
    app.add_typer(room, name=name, help=summary, no_args_is_help=True)

TOP_VERBS: tuple[Callable[..., None], ...] = (
    cluster.plan,
    cluster.apply,
    probe.probe,
    cluster.deploy,
    cluster.undeploy,
    reprovision.reprovision,
    cluster.status,
    cluster.logs,
    bench.bench,
    bottleneck.bottleneck,
    whatif.whatif,
    report.report,
    top.top,
    demo.demo,
    verify.verify_verdicts,
    sync.sync,
    doctor.doctor,
)
for command in TOP_VERBS:
    app.command()(command)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(cluster.salt)
