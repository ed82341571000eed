"""Reuse of freed memory, for the commands in this folder."""

import contextlib
import ctypes


def reuse_memory() -> None:
    """Have this process reuse freed memory, where its C library is glibc.

    By default glibc returns large tensors to the system, which clears each page of the next one.
    """
    trim_threshold, mmap_max = -1, -4  # of malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, -1)
        mallopt(mmap_max, 0)
