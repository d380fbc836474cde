"""Settings of this person and this machine: flag, environment, ./cluster.toml, user directory, default.

What describes a cluster is in its profile; here is only how this laptop reaches it.
"""

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FILE_NAME = "cluster.toml"
Origin = Literal["flag", "environment", "file", "user", "default"]


class ConfigError(Exception):
    """A setting that cannot be used; the text names file, line and key, what was seen and what is expected."""


# A setting's value is of the type that its kind says.
SettingValue = str | int | bool | tuple[str, ...] | None


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes
    ----------
    key
        Its name in a file; a dot separates a table from its key.
    variable
        Its environment variable; None when a text cannot hold it.
    default
        Its value when nobody says anything.
    kind
        text, path, number, switch or texts.
    meaning
        One sentence for people.
    """

    key: str
    variable: str | None
    default: SettingValue
    kind: Literal["text", "path", "number", "switch", "texts"]
    meaning: str


SETTINGS: dict[str, Setting] = {
    setting.key: setting
    for setting in (
        Setting("profile", "CLUSTER_PROFILE", "embedded", "text", "Profile that commands mean: a name or a path."),
        Setting("lab", "CLUSTER_LAB", "demo", "text", "Lab on this machine that commands mean."),
        Setting("runs", "CLUSTER_RUNS", "runs", "path", "Folder of the recorded runs on this machine."),
        Setting(
            "control.host",
            "CLUSTER_CONTROL",
            None,
            "text",
            "Control node of a hardware profile: [user@]host or an alias of your ssh configuration; `here` on itself.",
        ),
        Setting("control.port", "CLUSTER_CONTROL_PORT", None, "number", "Its ssh port, where it is not ssh's own."),
        Setting("control.identity", "CLUSTER_CONTROL_IDENTITY", None, "path", "Private key to use; no other is tried."),
        Setting("control.directory", "CLUSTER_CONTROL_DIRECTORY", "/opt/cluster", "text", "Our folder there."),
        Setting(
            "control.sudo", "CLUSTER_CONTROL_SUDO", False, "switch", "Run commands there with sudo, without a password."
        ),
        Setting("sync.exclude", None, (), "texts", "More patterns that `cluster sync` leaves out."),
    )
}


@dataclass(frozen=True)
class Value:
    """A setting's value and where it came from.

    Attributes
    ----------
    where
        The flag, the variable, or `file:line`; empty for a default.
    """

    value: SettingValue
    origin: Origin
    where: str = ""


_flags: dict[str, tuple[SettingValue, str]] = {}


def set_flags(flags: Mapping[str, tuple[SettingValue, str]]) -> None:
    """Note the settings given on the command line: key -> value and the option's name."""
    _flags.clear()
    _flags.update({key: (value, option) for key, (value, option) in flags.items() if value is not None})


def user_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of this person's settings and known hosts, the same on macOS."""
    base = environment.get("XDG_CONFIG_HOME") or ""
    return (Path(base) if base.startswith("/") else Path.home() / ".config") / "cluster"


def cache_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of what can be had again, such as names for the shell's completion."""
    base = environment.get("XDG_CACHE_HOME") or ""
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "cluster"


def find_file(start: Path | None = None) -> Path | None:
    """Return the nearest cluster.toml from a folder upward, None when there is none."""
    start = (start or Path.cwd()).absolute()
    return next((folder / FILE_NAME for folder in (start, *start.parents) if (folder / FILE_NAME).is_file()), None)


def get(key: str) -> SettingValue:
    """Return a setting's value.

    Raises
    ------
    ConfigError
        When it, or a file that could hold it, cannot be used.
    """
    return lookup()[key].value


def texts(key: str) -> tuple[str, ...]:
    """Return the value of a setting that is several texts; errors as `get`."""
    found = get(key)
    return found if isinstance(found, tuple) else ()


def lookup(start: Path | None = None, environment: Mapping[str, str] = os.environ) -> dict[str, Value]:
    """Return every setting's value with its origin."""
    found = {key: Value(setting.default, "default") for key, setting in SETTINGS.items()}
    nearest = find_file(start)
    user = user_directory(environment) / FILE_NAME
    sources: list[tuple[Origin, Path]] = []
    if user.is_file():
        sources.append(("user", user))
    if nearest and not (user.is_file() and nearest.samefile(user)):
        sources.append(("file", nearest))
    for origin, path in sources:
        for key, (value, line) in read_file(path).items():
            found[key] = Value(value, origin, f"{path}:{line}")
    for key, setting in SETTINGS.items():
        text = environment.get(setting.variable) if setting.variable else None
        if text:
            found[key] = Value(_from_text(setting, text), "environment", str(setting.variable))
    for key, (value, option) in _flags.items():
        found[key] = Value(value, "flag", option)
    return found


def read_file(path: Path) -> dict[str, tuple[SettingValue, int]]:
    """Return the settings of one file: key -> value and line.

    Raises
    ------
    ConfigError
        For TOML that does not parse, an unknown key, a value of the wrong kind, or a file of another person.
    """
    owner = path.stat().st_uid
    # It says to which machine commands go: not for a stranger's folder to decide.
    if owner not in (0, os.getuid()):
        raise ConfigError(f"{path} belongs to user {owner}; expected one of your own: copy it, or move away from it")
    text = path.read_text(encoding="utf-8")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from error
    found: dict[str, tuple[SettingValue, int]] = {}
    for key, value in _flat(data):
        line = _line(text, key)
        setting = SETTINGS.get(key)
        if setting is None:
            known = ", ".join(SETTINGS)
            raise ConfigError(f"{path}:{line}: unknown key {key}; expected one of {known}")
        found[key] = (_checked(setting, value, path, line), line)
    return found


def _flat(data: dict[str, object]) -> list[tuple[str, object]]:
    flat: list[tuple[str, object]] = []
    for key, value in data.items():
        if isinstance(value, dict):
            flat += [(f"{key}.{name}", inner) for name, inner in value.items()]
        else:
            flat.append((key, value))
    return flat


def _line(text: str, key: str) -> int:
    table, _, name = key.rpartition(".")
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([^\]]+?)\s*\]", line):
            current = header[1]
        elif re.match(rf"\s*\"?{re.escape(name if current == table else key)}\"?\s*[=.]", line):
            return number
    return 1


_EXPECTED: dict[str, tuple[str, Callable[[object], bool]]] = {
    "text": ("a text that is not empty", lambda value: isinstance(value, str) and bool(value)),
    "path": ("a path", lambda value: isinstance(value, str) and bool(value)),
    "number": (
        "a port from 1 to 65535",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536,
    ),
    "switch": ("true or false", lambda value: isinstance(value, bool)),
    "texts": (
        "a list of texts",
        lambda value: isinstance(value, list) and all(isinstance(each, str) and each for each in value),
    ),
}


def _checked(setting: Setting, value: object, path: Path, line: int) -> SettingValue:
    expected, fits = _EXPECTED[setting.kind]
    if not fits(value):
        raise ConfigError(f"{path}:{line}: {setting.key}: {value!r}; expected {expected}")
    if isinstance(value, str):
        is_path = setting.kind == "path" or (setting.key == "profile" and value.endswith((".yaml", ".yml")))
        # A path in a file is meant from that file, wherever the command is run.
        return str(path.parent / Path(value).expanduser()) if is_path else value
    if isinstance(value, list):
        return tuple(value)
    assert isinstance(value, int), "a number or a switch"
    return value


def _from_text(setting: Setting, text: str) -> SettingValue:
    if setting.kind == "number":
        if not text.isdecimal() or not 0 < int(text) < 65536:
            raise ConfigError(f"{setting.variable}={text}; expected {_EXPECTED['number'][0]}")
        return int(text)
    if setting.kind == "switch":
        if text.lower() not in ("1", "true", "yes", "0", "false", "no"):
            raise ConfigError(f"{setting.variable}={text}; expected {_EXPECTED['switch'][0]}")
        return text.lower() in ("1", "true", "yes")
    return str(Path(text).expanduser()) if setting.kind == "path" else text
