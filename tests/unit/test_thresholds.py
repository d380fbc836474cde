"""The numbers of the diagnosis stand in one place, each with what it is for; the rules hold no other."""

from __future__ import annotations

import ast
from pathlib import Path

import bottleneck.diagnosis as diagnosis
from bottleneck.diagnosis import thresholds

ROOM = Path(diagnosis.__file__).parent
# One, two and none; factors between units (bits of a byte, milli, micro, mega); rounding.
ALLOWED = {0, 1, 2, 8, 1e3, 1e6, 1e-6, 1e-9}
# Digits to which JSON is rounded are no number of the diagnosis.
ROUNDED = "round"


def literals(path: Path) -> list[tuple[str, int, float]]:
    """Return the numeric literals of a file that are not allowed: file, line, value."""
    tree = ast.parse(path.read_text())
    digits = {
        id(argument)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == ROUNDED
        for argument in call.args[1:]
    }
    return [
        (path.name, node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, int | float)
        and not isinstance(node.value, bool)
        and node.value not in ALLOWED
        and id(node) not in digits
    ]


def test_no_number_stands_in_the_rules() -> None:
    files = [path for path in ROOM.rglob("*.py") if path.name != "thresholds.py"]
    assert len(files) > 40
    assert [found for path in files for found in literals(path)] == []


def test_a_number_in_the_rules_would_be_found(tmp_path: Path) -> None:
    file = tmp_path / "rule.py"
    file.write_text("LEAST = 0.35\nshown = round(LEAST, 3)\nhalf = 1 / 2\n")
    assert literals(file) == [("rule.py", 1, 0.35)]


def test_every_number_says_what_it_is_for_and_is_read() -> None:
    numbers = thresholds.all_numbers()
    assert 30 < len(numbers) <= 40
    source = "".join(path.read_text() for path in ROOM.rglob("*.py") if path.name != "thresholds.py")
    for name, number in numbers.items():
        assert (
            number.unit
            and number.source
            and number.set_on
            and number.decides[0].isupper() | (number.decides[:3] == "...")
        )
        assert f"thresholds.{name}" in source, f"{name} decides nothing"


def test_a_moved_number_keeps_its_words() -> None:
    twin = thresholds.replaced("TIE", 0.2)
    assert twin == 0.2 and twin.decides == thresholds.TIE.decides


def test_what_stays_without_a_verdict_behind_it_is_a_number_and_says_why() -> None:
    assert set(thresholds.STAYS) <= set(thresholds.all_numbers())
    assert all(thresholds.STAYS.values())
