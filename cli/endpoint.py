"""`cluster endpoint`: where what is deployed serves, and the key that its API wants."""

from typing import Annotated, Any

import typer

from cli.cluster import runner_step
from cli.control import connect
from cli.options import DEFAULT_LAB, DEFAULT_PROFILE, JsonOption, LabOption, ProfileOption
from cli.output import emit, fail, plain


def endpoint(
    key: Annotated[bool, typer.Option("--key", help="Print the API's key as well.")] = False,
    profile: ProfileOption = DEFAULT_PROFILE,
    lab: LabOption = DEFAULT_LAB,
    as_json: JsonOption = False,
) -> None:
    """Say where what is deployed serves, and where the key of its API is.

    Examples:

      cluster endpoint

      OPENAI_API_KEY=$(cluster endpoint --key --json | jq -r .key)
    """
    control = connect(profile, lab)
    with runner_step("Asking where it serves", "cluster status"):
        found: dict[str, Any] = control.runner("cluster.endpoint")
    if key:
        # Not through the runner: what it returns is kept with the jobs of the master.
        read = control.run(["cat", found["key_file"]])
        if read.returncode:
            fail(f"{found['key_file']}: {read.stderr.strip()}", "cluster deploy", read.returncode)
        found["key"] = read.stdout.strip()

    def human() -> None:
        plain(f"{found['deployment']} serves at {found['url']}")
        if found["gateway"]["up"]:
            plain(f"behind it: {', '.join(found['heads'])} (reached by the control node alone)")
        else:
            plain(f"{found['gateway']['reason']}; the control node itself reaches {', '.join(found['heads'])}")
        plain(f"requests bring its key (Authorization: Bearer ...): {found['key_file']} on the control node")
        if key:
            plain(found["key"])

    emit(found, as_json, human)
