"""Files in this machine's page cache."""

import mmap
import os
from pathlib import Path

import pytest

from lab import page_cache

SIZE = 64 * mmap.PAGESIZE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file whose bytes are on the disk as well as in memory."""
    path = tmp_path / "weights"
    with path.open("wb") as opened:
        opened.write(os.urandom(SIZE))
        opened.flush()
        os.fsync(opened.fileno())
    return path


def cached(path: Path) -> int:
    with path.open("rb") as opened:
        return page_cache.cached(opened.fileno(), path.stat().st_size)


def test_a_file_that_was_read_is_cached_until_it_is_forgotten(file: Path) -> None:
    file.read_bytes()
    assert cached(file) == SIZE
    total, kept = page_cache.forget([file])
    assert total == SIZE
    if kept == SIZE:
        pytest.skip("the files of this folder are in memory alone (tmpfs)")
    assert (kept, cached(file)) == (0, 0)


def test_what_a_process_has_mapped_stays_and_is_reported(file: Path) -> None:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == file.read_bytes()
        assert page_cache.forget([file]) == (SIZE, SIZE)


def test_empty_and_missing_files_and_links_count_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert page_cache.forget(tmp_path / name for name in ("empty", "link", "gone")) == (0, 0)
