"""Kernel modules that the initramfs takes, on made-up module folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from netboot.image import initramfs
from netboot.image.commands import BuildError

VERSION = "7.2.12+deb14-amd64"


def kernel(root: Path, modules: str, built_in: str = "") -> Path:
    """Make a kernel's folder of modules; each file holds its own name."""
    folder = root / "usr/lib/modules" / VERSION
    folder.mkdir(parents=True)
    (folder / "modules.dep").write_text(modules)
    (folder / "modules.builtin").write_text(built_in)
    (folder / "modules.order").write_text("")
    for line in modules.splitlines():
        path = folder / line.partition(":")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())
    return root


def test_what_a_later_kernel_does_itself_is_not_missed(tmp_path: Path) -> None:
    root = kernel(tmp_path / "root", "kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko\nkernel/fs/jbd2/jbd2.ko:\n")
    taken = initramfs._take_modules(root, VERSION, ["ext4", "crc32c_generic"], tmp_path / "staging")
    assert set(taken) == {"ext4", "jbd2"}


def test_what_an_older_kernel_has_as_a_module_is_taken(tmp_path: Path) -> None:
    root = kernel(tmp_path / "root", "kernel/crypto/crc32c_generic.ko:\n", "kernel/fs/ext4/ext4.ko\n")
    assert initramfs._take_modules(root, VERSION, ["ext4", "crc32c_generic"], tmp_path / "s") == ["crc32c_generic"]


def test_a_module_that_no_kernel_has_is_an_error(tmp_path: Path) -> None:
    root = kernel(tmp_path / "root", "kernel/fs/ext4/ext4.ko:\n")
    with pytest.raises(BuildError, match="has no module igcc"):
        initramfs._take_modules(root, VERSION, ["ext4", "igcc"], tmp_path / "staging")
