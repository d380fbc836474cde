"""The page cache: what this machine keeps of files, so that no disk is asked for it."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


def forget(paths: Iterable[Path]) -> tuple[int, int]:
    """Take files out of the page cache, so that who reads them next reads from the disk.

    Only these files: what else this machine keeps in memory stays.

    Returns
    -------
    tuple of int
        Bytes of the files, and how many of them are in the cache all the same: what a process has mapped stays.
    """
    total = kept = 0
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOATIME | os.O_NOFOLLOW)
        except OSError:
            continue  # a link, or gone
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            size = os.fstat(descriptor).st_size
            total += size
            kept += cached(descriptor, size)
        finally:
            os.close(descriptor)
    return total, kept


def cached(descriptor: int, size: int) -> int:
    """Return how many bytes of an open file, of `size` bytes, are in the page cache (mincore(2))."""
    if not size:
        return 0
    # Private and writable, because only of such a map ctypes gives the address; nothing is written.
    with mmap.mmap(descriptor, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        failed = _libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), pages)
        del first
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return min(size, mmap.PAGESIZE * sum(page & 1 for page in pages))
