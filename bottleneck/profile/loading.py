"""Load, find and list profiles; every error names file, line and key.

Examples
--------
>>> profile = load_profile(find_profile("embedded"))  # doctest: +SKIP
>>> profile.networks["direct"].rate_bytes_per_second  # doctest: +SKIP
1000000000.0
"""

import difflib
import types
import typing
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bottleneck.profile.checks import check
from bottleneck.profile.engine_interface import EngineInterface
from bottleneck.profile.local_overrides import with_overlay
from bottleneck.profile.paths import find_engine_interfaces, find_engine_map
from bottleneck.profile.sections import Sections, unknown
from bottleneck.profile.types import (
    Boot,
    Control,
    Deployment,
    EngineSpec,
    Model,
    Network,
    Node,
    Profile,
    Sampler,
    Section,
    Source,
    Workload,
)
from bottleneck.profile.yaml_lines import Document, Location, Problem, ProfileError, read
from bottleneck.units import shown

_NAMED_SECTIONS: dict[str, type[Section]] = {
    "networks": Network,
    "nodes": Node,
    "deployments": Deployment,
    "sources": Source,
}
_SINGLE_SECTIONS: dict[str, type[Section]] = {
    "control": Control,
    "model": Model,
    "workload": Workload,
    "boot": Boot,
    "sampler": Sampler,
}
# What stands for a section that may be left out.
_LEFT_OUT: dict[str, object] = {"workload": {}, "sampler": {}, "sources": {}}


def load_profile(path: Path | str) -> Profile:
    """Read, check and return a profile with what is laid over it and the engine map that goes with it.

    Parameters
    ----------
    path : Path or str
        File of the profile; overlay and engine map are found beside it.

    Raises
    ------
    ProfileError
        One line for each problem: ``file:line: key: what was seen; expected what``.
    """
    path = Path(path)
    document = with_overlay(read(path))
    problems = list(document.problems)
    profile: Profile | None = None
    try:
        profile = Profile.model_validate(document.data)
    except ValidationError as error:
        problems += validation_problems(Profile, error, document)
    engine_problems: ProfileError | None = None
    engines: dict[str, EngineSpec] = {}
    try:
        engines = load_engines(find_engine_map(path))
    except ProfileError as error:
        engine_problems = error
    sections = _sections(document, problems, engines)
    reported = {problem.location for problem in problems}
    found = check(sections)
    problems += [document.problem(each.location, each.text) for each in found if each.location not in reported]
    if problems:
        raise ProfileError(path, _in_order(problems))
    if engine_problems:
        raise engine_problems
    assert profile is not None
    profile._path = path
    profile._document = document
    profile._engines = engines
    return profile


def load_interfaces(path: Path) -> dict[str, EngineInterface]:
    """Return how engines are started, watched and spread: name of the engine -> its interface.

    Parameters
    ----------
    path : Path
        File of the engines' interfaces.

    Raises
    ------
    ProfileError
        One line for each problem, with file and line, or when the file cannot be read.
    """
    document = read(path)
    problems = list(document.problems)
    found = {}
    for name, entry in document.data.items():
        try:
            found[name] = EngineInterface.model_validate(entry)
            found[name]._name = name
        except ValidationError as error:
            problems += validation_problems(EngineInterface, error, document, (name,))
    if problems:
        raise ProfileError(path, _in_order(problems))
    return found


def load_engines(path: Path) -> dict[str, EngineSpec]:
    """Return an engine map: kind of accelerator -> engine.

    Parameters
    ----------
    path : Path
        File of the engine map; the interfaces are beside it or the repository's.

    Raises
    ------
    ProfileError
        One line for each problem of the map or the interfaces, with file and line, or when a file cannot be read.
    """
    document = read(path)
    interfaces = load_interfaces(find_engine_interfaces(path))
    problems = list(document.problems)
    engines = {}
    for kind, entry in document.data.items():
        try:
            engines[kind] = EngineSpec.model_validate(entry)
            engines[kind]._kind = kind
        except ValidationError as error:
            problems += validation_problems(EngineSpec, error, document, (kind,))
            continue
        engine = engines[kind]
        if not engine.is_installed and not engine.untested:
            text = "nothing; expected a file in salt/engine/files, another form of installation, or `untested`"
            problems.append(document.problem((kind, "lock"), text))
        if engine.engine not in interfaces:
            problems.append(document.problem((kind, "engine"), unknown(engine.engine, "engine", interfaces)))
        engine._interface = interfaces.get(engine.engine)
    for kind, engine in engines.items():
        tools = engine.conversion_tools
        if tools is not None and tools not in engines:
            problems.append(document.problem((kind, "conversion_tools"), unknown(tools, "entry", engines)))
    if problems:
        raise ProfileError(path, _in_order(problems))
    return engines


def _in_order(problems: list[Problem]) -> list[Problem]:
    """Return problems by line, each once: what an anchor holds stands in several places."""
    once: dict[tuple[object, ...], Problem] = {}
    for problem in problems:
        once.setdefault((problem.path, problem.line, problem.location[-1:], problem.text), problem)
    return sorted(once.values(), key=lambda problem: (problem.path or "", problem.line or 0))


def _sections(document: Document, problems: list[Problem], engines: dict[str, EngineSpec]) -> Sections:
    """Return the sections that are sound on their own, with the names of those that are not."""
    data = _without_unknown_keys(document.data, problems)
    sound: dict[str, Any] = {}
    broken: set[Location] = set()
    for name, single in _SINGLE_SECTIONS.items():
        try:
            sound[name] = single.model_validate(data.get(name, _LEFT_OUT.get(name)))
        except ValidationError:
            sound[name] = None
    for name, section in _NAMED_SECTIONS.items():
        entries = data.get(name, _LEFT_OUT.get(name))
        sound[name] = {}
        if not isinstance(entries, dict):
            broken.add((name,))
            continue
        for key, entry in entries.items():
            try:
                sound[name][key] = section.model_validate(entry)
            except ValidationError:
                broken.add((name, key))
    default, kind = data.get("default_deployment"), data.get("kind")
    return Sections(
        **sound,
        kind=kind if isinstance(kind, str) else None,
        keys=frozenset(".".join(map(str, location)) for location in document.lines if location),
        default_deployment=default if isinstance(default, str) else None,
        engines=engines,
        broken=frozenset(broken),
    )


def _without_unknown_keys(data: dict[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """Return the document less its unknown keys, so that the rest of a section can be checked."""
    strangers = {problem.location for problem in problems if problem.text.startswith("unknown key")}

    def strip(value: object, location: Location) -> object:
        if isinstance(value, dict):
            kept = {key: item for key, item in value.items() if (*location, key) not in strangers}
            return {key: strip(item, (*location, key)) for key, item in kept.items()}
        if isinstance(value, list):
            return [strip(item, (*location, index)) for index, item in enumerate(value)]
        return value

    return {key: strip(item, (key,)) for key, item in data.items() if (key,) not in strangers}


def validation_problems(
    model: type[BaseModel], error: ValidationError, document: Document | None = None, prefix: Location = ()
) -> list[Problem]:
    """Return what pydantic found wrong as problems.

    Parameters
    ----------
    model : type[BaseModel]
        Type that the document was read as, whose keys a message offers.
    error : ValidationError
        What pydantic raised.
    document : Document or None
        For the lines; without one, problems have none.
    prefix : Location
        Where in the document the model stands.
    """
    found = []
    details = error.errors(include_url=False)
    missing = {detail["loc"] for detail in details if detail["type"] == "missing"}
    for detail in details:
        location = detail["loc"]
        # pydantic marks an error of a mapping's key, as against its value.
        if location and location[-1] == "[key]":
            location = location[:-1]
        text = _text(model, detail, location, missing)
        full = (*prefix, *_without_tags(model, location))
        found.append(document.problem(full, text) if document else Problem(full, text))
    typos = {problem.location[:-1]: problem.text for problem in found if problem.text.startswith("unknown key")}
    # A misspelt key is one problem, not an unknown key and a missing one.
    return [
        problem
        for problem in found
        if not (
            problem.text.startswith("nothing;")
            and f"(did you mean {problem.location[-1]}?)" in typos.get(problem.location[:-1], "")
        )
    ]


def _text(model: type[BaseModel], detail: ErrorDetails, location: Location, missing: set[Location]) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "extra_forbidden":
        known = _keys_at(model, location[:-1])
        absent = [key for key in known if (*location[:-1], key) in missing]
        name = str(location[-1])
        near = difflib.get_close_matches(name, absent, 1) or difflib.get_close_matches(name, known, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return f"unknown key{hint}; expected one of {', '.join(known)}"
    if kind == "missing":
        return f"nothing; expected {_expected_at(model, location)}"
    expectations = {
        "string_type": "text",
        "int_type": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "list_type": "a list",
        "dict_type": "a mapping",
        "model_type": "a mapping",
        "greater_than": "a number above {gt}",
        "greater_than_equal": "at least {ge}",
        "less_than": "a number below {lt}",
        "less_than_equal": "at most {le}",
        "literal_error": "{expected}",
        "too_short": "at least one entry",
        "string_too_short": "text that is not empty",
    }
    seen = shown(detail["input"])
    if kind == "string_type" and isinstance(detail["input"], (int, float)):
        seen += ", a number or true/false: put it in quotes"
    if kind == "too_short":
        seen = "an empty mapping or list"
    expectation = expectations.get(kind)
    return f"{seen}; expected {expectation.format(**context) if expectation else detail['msg']}"


def _annotation_at(model: type[BaseModel], location: Location) -> object:
    """Return the type of what stands at a location of a model, as pydantic gives it."""
    return _plain(_walk(model, location)[1])


def _without_tags(model: type[BaseModel], location: Location) -> Location:
    """Return a location as in the file: pydantic adds the tag of the section it chose among several."""
    return _walk(model, location)[0]


def _walk(model: type[BaseModel], location: Location) -> tuple[Location, object]:
    """Follow a location; return it as in the file, and the type of what stands there."""
    current: object = model
    kept: list[str | int] = []
    for part in location:
        choices = _choices(current)
        chosen = [choice for choice in choices if str(part) in _tags(choice)]
        if len(choices) > 1 and chosen:
            current = chosen[0]
            continue
        kept.append(part)
        current = _plain(current)
        if isinstance(current, type) and issubclass(current, BaseModel):
            current = _fields(current).get(str(part))
        elif typing.get_origin(current) in (dict, list):
            current = typing.get_args(current)[-1]
        else:
            current = None
    return tuple(kept), current


def _fields(model: type[BaseModel]) -> dict[str, object]:
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _choices(annotation: object) -> list[type[BaseModel]]:
    """Return the sections that may stand here."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _choices(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return [choice for part in typing.get_args(annotation) for choice in _choices(part)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def _tags(section: type[BaseModel]) -> set[str]:
    """Return the texts that a section's keys may hold where the text is given."""
    literals = [each for each in _fields(section).values() if typing.get_origin(each) is Literal]
    return {str(value) for each in literals for value in typing.get_args(each)}


def _plain(annotation: object) -> object:
    """Return a type without Annotated and without None."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _plain(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return _plain(next(part for part in typing.get_args(annotation) if part is not type(None)))
    return annotation


def _keys_at(model: type[BaseModel], location: Location) -> list[str]:
    annotation = _annotation_at(model, location)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [field.alias or name for name, field in annotation.model_fields.items()]
    return []


def _expected_at(model: type[BaseModel], location: Location) -> str:
    """Return what a missing key should hold, from the field's own description."""
    parent = _annotation_at(model, location[:-1])
    if not (isinstance(parent, type) and issubclass(parent, BaseModel)):
        return "a value"
    for name, field in parent.model_fields.items():
        if (field.alias or name) == location[-1] and field.description:
            first = field.description.rstrip(".")
            return f"a value ({first[0].lower()}{first[1:]})"
    return "a value"
