"""`cluster control`: the control node itself."""

import os
import sys
from typing import Annotated

import typer
from rich.markup import escape

from bottleneck.profile import ProfileError, find_profile, load_profile
from cli import config
from cli.cluster import print_changes, runner_step
from cli.control import control_target
from cli.options import DEFAULT_PROFILE, JsonOption, ProfileOption
from cli.output import FAILED, UNREACHABLE, USAGE, console, emit, fail, out
from cli.sync import REPOSITORY
from remote import host_keys as trusting
from remote import setup
from remote.control import stream
from remote.control_interface import ControlError
from remote.quoting import shell_text
from remote.sync_effects import consequences, take_up
from remote.target import Target, TargetError
from remote.tree import EXCLUDES, TreeError

app = typer.Typer()
FingerprintOption = Annotated[
    str | None,
    typer.Option(help="The host key's fingerprint, SHA256:..., as the machine itself prints it; then nobody is asked."),
]
HostArgument = Annotated[str | None, typer.Argument(help="[user@]host.", show_default="control.host")]


@app.command("cmd", context_settings={"ignore_unknown_options": True})
def command(
    argv: Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="What to run there.")],
) -> None:
    """Run a command on the control node; output, exit status and Ctrl-C are the command's.

    Examples:

      cluster control cmd -- systemctl status salt-master

      cluster control cmd -- journalctl --unit dnsmasq --lines 20
    """
    target = control_target()
    if target is None:
        sys.stdout.flush()
        os.execvp(argv[0], argv)
    try:
        raise typer.Exit(stream(target, argv))
    except ControlError as error:
        fail(str(error), error.next_command, error.code)


@app.command()
def shell() -> None:
    """Open a shell on the control node, with `salt`, `salt-run` and `cluster` at hand.

    Examples:

      cluster control shell
    """
    target = control_target()
    if target is None:
        os.execvp("bash", ["bash", "-i"])
    path = shell_text([f"PATH={target.programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"])
    login = "exec " + ("sudo -n " if target.sudo else "") + f'env {path} "${{SHELL:-/bin/bash}}" -i'
    ssh = [*_ssh(target), "-t", target.host, login]
    sys.stdout.flush()
    os.execvp(ssh[0], ssh)


@app.command()
def trust(
    host: HostArgument = None,
    fingerprint: FingerprintOption = None,
    replace: Annotated[bool, typer.Option("--replace", help="Put it in the place of another key.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make the control node's host key known: shows the fingerprint and asks, or takes the one you give.

    Examples:

      cluster control trust root@nuc.local

      cluster control trust root@nuc.local --fingerprint SHA256:AAAA
    """
    target = control_target(host)
    if target is None:
        fail("this machine is the control node", code=USAGE)
    key = first_contact(target, fingerprint, replace)
    document = {"host": target.host, "kind": key.kind, "fingerprint": key.fingerprint}
    emit(document, as_json, lambda: out.print(f"{escape(target.host)}: {key.kind} {key.fingerprint} is trusted"))


@app.command()
def init(
    host: HostArgument = None,
    fingerprint: FingerprintOption = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    test: Annotated[bool, typer.Option("--test", help="Say what the states would change; change none of it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn a fresh Debian machine into the control node of a profile; again changes only what is not so.

    Its secrets are made there and stay there.

    Examples:

      cluster control init root@nuc.local --profile arc-a770/v0.1

      cluster control init --test
    """
    try:
        loaded = load_profile(find_profile(profile))
    except ProfileError as error:
        fail(str(error), f"cluster profile check {profile}", USAGE)
    if loaded.kind == "lab":
        fail(f"profile {loaded.name} is a lab, which needs no machine", "cluster lab up", USAGE)
    if loaded.control.interface is None:
        fail(f"profile {loaded.name}: control.interface is missing; expected the cluster's interface", code=USAGE)
    target = control_target(host)
    if target is None:
        fail("this machine is the control node", "setup/control-node PROFILE, in its tree", USAGE)
    first_contact(target, fingerprint)
    with runner_step("Installing what everything else needs") as current:
        current.detail(", ".join(setup.first_packages(target)) or "it is all there")
    with runner_step("Sending the tree") as current:
        try:
            planned = setup.send_tree(target, REPOSITORY, [*EXCLUDES, *config.texts("sync.exclude")], current.detail)
        except TreeError as error:
            fail(str(error), "cluster sync --help", USAGE)
    title = "Working out what the states would change" if test else "Applying the control node's states"
    with runner_step(title, "cluster control shell") as current:
        result = setup.apply_states(target, profile, test, current.detail)
    if not test and not result["failed"]:
        with runner_step("Looking after the running master"):
            take_up(target, consequences(planned.difference, planned.behind))

    def human() -> None:
        print_changes({target.host: result}, test)
        if host and not result["failed"]:
            console.print(f'[dim]next:[/] put control.host = "{escape(host)}" into cluster.toml, then: cluster doctor')

    emit({"host": target.host, "release": planned.release, **result}, as_json, human)
    if result["failed"]:
        raise typer.Exit(FAILED)


def first_contact(target: Target, fingerprint: str | None, replace: bool = False) -> trusting.HostKey:
    """Return the machine's host key once it is trusted; end the command when it is not to be."""
    with runner_step(f"Asking {target.host} for its host key"):
        key = trusting.show_key(target)
    if trusting.is_trusted(target, key):
        if fingerprint and fingerprint != key.fingerprint:
            fail(f"{target.host} has {key.fingerprint}; expected {fingerprint}", code=UNREACHABLE)
        return key
    known = trusting.known_entries(target.known_hosts, key.name)
    if known and not replace:
        fail(
            f"{target.host} shows {key.fingerprint}, and another key of it is known: it was installed anew, "
            "or another machine answers in its place",
            f"cluster control trust {shell_text([target.host])} --replace",
            UNREACHABLE,
        )
    if fingerprint:
        if fingerprint != key.fingerprint:
            fail(f"{target.host} shows {key.fingerprint}; expected {fingerprint}", code=UNREACHABLE)
    elif not sys.stdin.isatty():
        fail(
            f"{target.host} shows {key.kind} {key.fingerprint}, and there is nobody to ask",
            f"compare it on that machine, then: cluster control trust {shell_text([target.host])} "
            f"--fingerprint {key.fingerprint}",
            UNREACHABLE,
        )
    else:
        console.print(f"{escape(target.host)} shows {key.kind} [bold]{key.fingerprint}[/]")
        console.print("[dim]on that machine:[/] ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub")
        if not typer.confirm("Is it the same?", err=True):
            fail("not trusted", code=UNREACHABLE)
    trusting.trust(target, key)
    return key


def _ssh(target: Target) -> list[str]:
    try:
        return target.ssh()
    except TargetError as error:
        fail(str(error), "cluster doctor", UNREACHABLE)
