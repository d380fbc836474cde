"""The generated reference of the profile."""

import re

import yaml

from bottleneck.profile import list_profiles
from bottleneck.profile.schema import COMMAND, json_schema, reference_page, stale_files
from bottleneck.profile.types import EngineSpec, Profile


def test_the_reference_is_current() -> None:
    stale = [path.name for path in stale_files()]
    assert not stale, f"next: {COMMAND}"


def test_every_key_has_a_type_and_a_meaning() -> None:
    rows = [line.strip("| ").split(" | ") for line in reference_page().splitlines() if line.startswith("| `")]
    assert len(rows) > 70
    for row in rows:
        assert len(row) in (4,), row
        assert all(cell.strip() for cell in row), row


def test_quantities_are_shown_as_they_are_written() -> None:
    page = reference_page()
    assert "| `rate` | frequency | `10 Hz` | Samples a second. |" in page
    assert "| `memory` | size | required | Main memory. |" in page
    assert "_bytes" not in page.partition("### Names in command lines")[0]
    assert "_seconds" not in page


def test_the_schema_allows_the_keys_of_the_repositorys_profiles() -> None:
    schema = json_schema()
    assert schema["additionalProperties"] is False
    for path in list_profiles():
        data = yaml.safe_load(path.read_text())
        assert set(data) <= set(schema["properties"])
        assert set(schema["required"]) <= set(data)
        rate = schema["$defs"]["Network"]["properties"]["rate"]["pattern"]
        for network in data["networks"].values():
            assert re.search(rate, network["rate"])


def test_patterns_of_units_refuse_what_is_refused() -> None:
    pattern = json_schema()["$defs"]["Node"]["properties"]["memory"]["pattern"]
    assert re.search(pattern, "5 GiB")
    assert not re.search(pattern, "5")
    assert not re.search(pattern, "5 gb")


def test_every_field_is_described() -> None:
    for model in (Profile, EngineSpec):
        assert all(field.description for field in model.model_fields.values())
