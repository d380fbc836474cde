"""A JSON file is read into its type, or the error names the file, the place, what was seen and what was expected."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from bottleneck.json_files import JsonFileError, read_json


@dataclass(frozen=True)
class Record:
    name: str
    moments: tuple[float, ...]


RECORD: TypeAdapter[Record] = TypeAdapter(Record)


def test_what_was_written_is_read_and_no_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert read_json(path, RECORD) is None
    # Half a surrogate pair is what Python makes of a byte that is no UTF-8.
    record = Record("caf\udce9", (1.0, 2.5))
    path.write_text(json.dumps(asdict(record)))
    assert read_json(path, RECORD) == record


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not JSON: Expecting value: line 1"),
        (b"\xff", "not JSON: .*can't decode byte 0xff"),
        (b"[1]", "a list; expected a JSON object"),
        (b"null", "nothing; expected a JSON object"),
        (b'{"name": "a"}', "moments: field required"),
        (b'{"name": 7, "moments": []}', "name: 7; input should be a valid string"),
        (b'{"name": "a", "moments": [1, "x"]}', r"moments\[1\]: 'x'; input should be a valid number"),
    ],
)
def test_another_content_is_named_with_its_place(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(JsonFileError, match=f"^{path}: {expected}"):
        read_json(path, RECORD)


def test_a_file_that_cannot_be_read_is_no_missing_one(tmp_path: Path) -> None:
    with pytest.raises(JsonFileError, match=f"^{tmp_path}: Is a directory; expected a file that can be read"):
        read_json(tmp_path, RECORD)
