"""The `cluster` command."""

from typing import Annotated

import typer

from cli import config
from cli.lazy import Lazy, lazy_group

# In the order of `cluster --help`. Nothing of these is imported before it is asked for.
COMMANDS = {
    "plan": Lazy("cli.cluster:plan"),
    "apply": Lazy("cli.cluster:apply"),
    "probe": Lazy("cli.probe:probe"),
    "plan-deployment": Lazy("cli.plan_deployment:plan_deployment"),
    "deploy": Lazy("cli.cluster:deploy"),
    "undeploy": Lazy("cli.cluster:undeploy"),
    "endpoint": Lazy("cli.endpoint:endpoint"),
    "reprovision": Lazy("cli.reprovision:reprovision"),
    "status": Lazy("cli.cluster:status"),
    "logs": Lazy("cli.cluster:logs"),
    "audit": Lazy("cli.recover:audit"),
    "pause": Lazy("cli.recover:pause"),
    "resume": Lazy("cli.recover:resume"),
    "bench": Lazy("cli.bench:bench"),
    "bottleneck": Lazy("cli.bottleneck:bottleneck"),
    "whatif": Lazy("cli.whatif:whatif"),
    "report": Lazy("cli.report.command:report"),
    "top": Lazy("cli.top:top"),
    "demo": Lazy("cli.demo:demo"),
    "verify-verdicts": Lazy("cli.verify:verify_verdicts"),
    "gpu-lab": Lazy("cli.gpu_lab:gpu_lab"),
    "sync": Lazy("cli.sync:sync"),
    "doctor": Lazy("cli.doctor:doctor"),
    "salt": Lazy("cli.cluster:salt", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}),
    "profile": Lazy("cli.profile:app", "Read and check profiles."),
    "model": Lazy("cli.model:app", "What a model needs, from its own config.json; download one for all nodes."),
    "lab": Lazy("cli.lab_commands:app", "The embedded cluster: nodes as namespaces on this machine."),
    "run": Lazy("cli.runs:app", "List, show and compare recorded runs."),
    "image": Lazy("cli.image:app", "The Linux image that the nodes boot: build, compare, make active, go back."),
    "control": Lazy("cli.control_commands:app", "The control node, from a laptop."),
    "config": Lazy("cli.config_commands:app", "Settings, and where each comes from."),
    "boot": Lazy("cli.boot:app", "Boots of the nodes: watch, look at one, expect one."),
    "node": Lazy("cli.boot:node_app", "Machines that ask to boot."),
    "prometheus": Lazy("cli.prometheus:app", "Scrape configuration, alert rules and dashboard."),
}

app = typer.Typer(
    name="cluster",
    cls=lazy_group(COMMANDS),
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
