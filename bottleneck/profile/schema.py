"""Write the reference of the profile: its JSON schema and a page with every key.

Both come from the types, so they cannot say something else than what is checked.

Usage::

    python -m bottleneck.profile.schema            # write doc/reference/profile.{schema.json,md}
    python -m bottleneck.profile.schema --check    # exit 1 when a file is not current
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bottleneck.profile.engine_interface import CONVERSION_NAMES, NAMES, EngineInterface
from bottleneck.profile.paths import repository_directory
from bottleneck.profile.types import EngineSpec, Profile
from bottleneck.units import DURATION, FREQUENCY, RATE, SIZE

COMMAND = "python -m bottleneck.profile.schema"
_DIMENSIONS = {dimension.noun.removeprefix("a "): dimension for dimension in (SIZE, RATE, DURATION, FREQUENCY)}


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a profile, for editors and other tools."""
    schema = Profile.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def reference_page() -> str:
    """Return the reference page in Markdown."""
    lines = [
        "# Profile",
        "",
        f"Every key of a profile. Made from the types by `{COMMAND}`; the same as a JSON schema is in",
        "[profile.schema.json](profile.schema.json).",
        "",
        "A profile is a YAML mapping of at most 1 MiB. Anchors, aliases and `<<` work. Unknown keys are errors,",
        "quantities carry their unit, and text that looks like a number needs quotes.",
        "",
        "## Units",
        "",
        "| Quantity | Units | Example |",
        "|---|---|---|",
    ]
    for name, dimension in _DIMENSIONS.items():
        units = ", ".join(f"`{unit}`" for unit in dimension.units)
        lines.append(f"| {name} | {units} | `{dimension.example}` |")
    lines += ["", "1 kB is 1000 bytes, 1 KiB is 1024 bytes; 8 bit are a byte.", ""]
    lines += [
        "## What is laid over a profile",
        "",
        "`arc-a770/v0.1.local.yaml` is laid over `arc-a770/v0.1.yaml`: mappings are merged key by key, everything else",
        "is replaced. It holds what is known of the machines at hand only, such as MAC addresses, which",
        "`cluster profile set-mac` writes there; it stays out of git, and goes into a run's folder with the profile.",
        "The digest of a profile is that of what is in force: its file, what is laid over it, and the entries of the",
        "engine map that its nodes use.",
        "",
        "What a profile may leave open is written `unknown`: the MAC addresses that nodes boot by, and the control",
        "node's interface. `cluster profile check --deploy` and every command that deploys refuse it until that is",
        "filled in. What has the basis `assumed` among the sources is listed by `cluster profile check`.",
        "",
    ]
    lines += _tables("Profile", Profile.model_json_schema(by_alias=True))
    lines += [
        "## Engine map",
        "",
        "`engines.yaml` beside the profiles: kind of accelerator -> the engine for it.",
        "",
    ]
    lines += _tables("EngineSpec", EngineSpec.model_json_schema(by_alias=True))
    lines += [
        "## Engine interfaces",
        "",
        "`engine_interfaces.yaml` beside the engine map: name of an engine -> how it is started, watched and spread.",
        "",
    ]
    lines += _tables("EngineInterface", EngineInterface.model_json_schema(by_alias=True))
    lines += [
        "### Names in command lines",
        "",
        "A word that stands alone or a list of words is left out when one of its names has no value. `{arguments}` is",
        "where the arguments of the engine map's entry and the deployment's `extra_arguments` go.",
        "",
        *_names(NAMES),
        "### Names in a conversion",
        "",
        *_names(CONVERSION_NAMES),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _names(names: Mapping[str, str]) -> list[str]:
    return [*(f"- `{{{name}}}`: {text}" for name, text in names.items()), ""]


def _tables(root: str, schema: dict[str, Any]) -> list[str]:
    definitions: dict[str, Any] = schema.get("$defs", {})
    lines: list[str] = []
    waiting, done = [(root, schema)], {root}
    while waiting:
        title, section = waiting.pop(0)
        required = set(section.get("required", []))
        lines += [f"### {title}", "", " ".join(section.get("description", "").split()), ""]
        lines += ["| Key | Type | Default | Meaning |", "|---|---|---|---|"]
        for key, entry in section["properties"].items():
            default = "required" if key in required else _default(entry)
            referenced = _references(entry)
            # pydantic leaves a key's description out when its section's says the same.
            meaning = entry.get("description") or definitions[referenced[0]]["description"]
            lines.append(f"| `{key}` | {_type(entry)} | {default} | {meaning} |")
            for name in referenced:
                if name not in done:
                    done.add(name)
                    waiting.append((name, definitions[name]))
        lines.append("")
    return lines


def _references(entry: object) -> list[str]:
    """Return the sections that an entry holds, in order."""
    if isinstance(entry, dict):
        own = [entry["$ref"].rsplit("/", 1)[1]] if "$ref" in entry else []
        return own + [name for value in entry.values() for name in _references(value)]
    if isinstance(entry, list):
        return [name for value in entry for name in _references(value)]
    return []


def _default(entry: dict[str, Any]) -> str:
    if "default" not in entry:
        return "its defaults" if "$ref" in entry else ""
    default = entry["default"]
    if default in (None, "", [], {}):
        return "none"
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _type(entry: dict[str, Any]) -> str:
    if "anyOf" in entry:
        return _type(next(option for option in entry["anyOf"] if option.get("type") != "null"))
    if "$ref" in entry:
        name = entry["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "const" in entry:
        return f"`{json.dumps(entry['const'])}`"
    if "enum" in entry:
        return " or ".join(f"`{value}`" for value in entry["enum"])
    kind = entry.get("type")
    if kind == "array":
        return f"list of {_type(entry['items'])}"
    if kind == "object":
        values = entry["additionalProperties"]
        return f"mapping of name to {_type(values)}" if isinstance(values, dict) else "mapping"
    if kind in ("integer", "number"):
        return ("whole number" if kind == "integer" else "number") + _bounds(entry)
    if kind == "string":
        title = str(entry.get("title", "text"))
        named = {"name", "DNS label", "interface name", "MAC address", "IPv4 address", "IPv4 subnet", *_DIMENSIONS}
        return title if title in named else "text"
    return "true or false" if kind == "boolean" else str(kind)


def _bounds(entry: dict[str, Any]) -> str:
    low, high = entry.get("minimum"), entry.get("maximum")
    if "exclusiveMinimum" in entry:
        return f", above {entry['exclusiveMinimum']:g} to {high:g}"
    # A bound that only guards against nonsense is not worth a reader's time.
    if high is not None and high < 2**31 - 1:
        return f", {low:g} to {high:g}"
    return "" if low is None else f", at least {low:g}"


def reference_files() -> dict[Path, str]:
    """Return the content of each generated file."""
    folder = repository_directory() / "doc" / "reference"
    return {
        folder / "profile.schema.json": json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n",
        folder / "profile.md": reference_page(),
    }


def stale_files() -> list[Path]:
    """Return the generated files that are missing or not current."""
    return [
        path
        for path, content in reference_files().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != content
    ]


def main(arguments: list[str]) -> int:
    """Write the files, or with ``--check`` only say which are not current.

    Parameters
    ----------
    arguments : list[str]
        Words of the command line after the program's name.

    Returns
    -------
    int
        Exit status: 1 when ``--check`` finds a file that is not current, else 0.
    """
    stale = stale_files()
    if "--check" in arguments:
        for path in stale:
            sys.stderr.write(f"{path} is not what the types say; next: {COMMAND}\n")
        return 1 if stale else 0
    files = reference_files()
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
