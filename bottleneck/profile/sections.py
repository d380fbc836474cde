"""The sections of a profile as far as they are sound: what the checks compare."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bottleneck.profile.types import (
    Boot,
    Control,
    Deployment,
    EngineSpec,
    Model,
    Network,
    Node,
    Sampler,
    Source,
    Workload,
)
from bottleneck.profile.yaml_lines import Location


@dataclass(frozen=True)
class Sections:
    """The sound sections of a profile.

    Attributes
    ----------
    broken
        Locations of entries that are in the file but not sound: known names, nothing else.
    keys
        Every key of the file as written, parts joined by dots.
    """

    kind: str | None = None
    control: Control | None = None
    networks: Mapping[str, Network] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    model: Model | None = None
    deployments: Mapping[str, Deployment] = field(default_factory=dict)
    default_deployment: str | None = None
    workload: Workload | None = None
    boot: Boot | None = None
    sampler: Sampler | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()
    engines: Mapping[str, EngineSpec] = field(default_factory=dict)
    broken: frozenset[Location] = frozenset()

    def names(self, section: str) -> set[str]:
        """Return every name of a section, sound or not.

        Parameters
        ----------
        section : str
            Name of a section that is a mapping, such as "nodes".
        """
        sound: Mapping[str, Any] = getattr(self, section)
        return set(sound) | {str(location[1]) for location in self.broken if location[0] == section and location[1:]}

    def stranger(self, section: str, name: str, what: str) -> str | None:
        """Return the text about a name that a section does not have, or None.

        Nothing is said about a section that is missing or no mapping: that is reported by itself.

        Parameters
        ----------
        section
            Name of a section of the profile.
        name
            The name that was used.
        what
            What it should be, for the sentence.
        """
        known = self.names(section)
        return None if name in known or (section,) in self.broken else unknown(name, what, known)


def unknown(name: str, what: str, known: Iterable[str]) -> str:
    """Return the text about a name that is not known, with the nearest one that is.

    Parameters
    ----------
    name
        The name that was used.
    what
        What it should be, for the sentence.
    known
        The names there are.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"unknown {what} {name}{hint}; expected one of {', '.join(names) or 'none: there are none'}"
