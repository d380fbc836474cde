"""Fill in an engine's command lines: words with ``{names}``, left out together where one has no value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bottleneck.profile.engine_interface import ARGUMENTS, Words, names_in

Value = str | int | float | bool | None
Values = Mapping[str, Value]


def command_line(groups: Iterable[Words], values: Values, arguments: Iterable[str]) -> list[str]:
    """Return the words of a command line.

    Parameters
    ----------
    groups
        As an engine's interface has them.
    values
        A value for each name; None, and False for a flag, is none.
    arguments
        What stands where the command line has ``{arguments}``.
    """
    found: list[str] = []
    for group in groups:
        if group.words == [ARGUMENTS]:
            found += arguments
        elif _holds(group, values):
            found += filled(group.words, values)
    return found


def filled(words: Iterable[str], values: Values) -> list[str]:
    """Return words with the names filled in; nothing when one of them has no value.

    Parameters
    ----------
    words : Iterable[str]
        Templates with names in braces, such as "--port" and "{port}".
    values : Values
        Name -> value; None where there is nothing to say.

    Raises
    ------
    KeyError
        For a name that is not among the values.
    ValueError
        For a text that is no template.
    """
    written = list(words)
    used = set().union(*map(names_in, written))
    if any(values[name] is None for name in used):
        return []
    texts = {name: value_text(values[name]) for name in used}
    return [word.format_map(texts) for word in written]


def environment(templates: Mapping[str, str], values: Values) -> dict[str, str]:
    """Return the variables that have a value.

    Parameters
    ----------
    templates : Mapping[str, str]
        Name of a variable -> template of its value.
    values : Values
        As in `filled`.

    Raises
    ------
    KeyError
        As in `filled`.
    ValueError
        As in `filled`.
    """
    found = {name: filled([text], values) for name, text in templates.items()}
    return {name: words[0] for name, words in found.items() if words}


def value_text(value: Value) -> str:
    """Return a value as a command line has it: shares without needless digits.

    Parameters
    ----------
    value : Value
        Number or text; a float is written with six digits at most.
    """
    return f"{value:g}" if isinstance(value, float) else str(value)


def _holds(group: Words, values: Values) -> bool:
    return (group.when is None or bool(values[group.when])) and (group.unless is None or not values[group.unless])
