"""Reuse freed memory, which makes the commands in this folder faster on Linux."""

import contextlib
import ctypes


def reuse_memory() -> None:
    """Make this process keep and reuse freed memory. This does nothing without glibc.

    By default, glibc returns the memory of large tensors to the operating system. The system fills
    each page with zeros before the next tensor gets it, which takes time.
    """
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8  # of malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):  # the C library is not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_trim_threshold, -1)  # never return free memory at the end of the heap
        mallopt(m_mmap_max, 0)  # put large tensors on the heap too
        mallopt(m_arena_max, 1)  # one heap for all threads: what one frees, another can reuse
