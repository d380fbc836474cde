"""What one class of bottleneck is made of."""

from __future__ import annotations

from dataclasses import dataclass

# How a class's scorer was tried: on the embedded cluster, on recordings of an accelerator, on made-up signals only.
LAB, RECORDED, SYNTHETIC = "lab", "recorded", "synthetic"


@dataclass(frozen=True)
class BottleneckClass:
    """One kind of bottleneck.

    Attributes
    ----------
    name : str
        The word in JSON.
    title : str
        The words for a person; may hold `{node}`, `{link}` and `{kind}`.
    meaning : str
        What it is.
    signals : tuple of str
        What shows it.
    neighbours : tuple of (str, str)
        The classes it is mistaken for most easily, and what tells them apart.
    advice : tuple of str
        What to do; may hold `{node}`, `{link}` and other names that the rule fills in.
    fault : bool
        True where something is set or working wrong; False for a limit that a healthy cluster has too.
    tried : str
        `lab`, `recorded` or `synthetic`: the best evidence on which its scorer was tested.
    at_start : str
        What it is for an engine that starts, where that is something else.
    """

    name: str
    title: str
    meaning: str
    signals: tuple[str, ...]
    neighbours: tuple[tuple[str, str], ...]
    advice: tuple[str, ...]
    fault: bool
    tried: str
    at_start: str = ""
