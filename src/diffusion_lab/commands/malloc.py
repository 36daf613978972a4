"""Configuration of glibc's malloc, so that each training step reuses the host memory that the previous step freed."""

import ctypes
import os
import sys

TRIM_THRESHOLD_BYTES, MMAP_THRESHOLD_BYTES = 2**31 - 1, 32 * 2**20
"""Largest amount of freed memory, and largest freed block, that malloc keeps: the largest values that glibc accepts."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameter numbers of mallopt, from malloc.h."""


def keep_freed_memory() -> None:
    """Let glibc's malloc keep freed memory for the next step instead of returning it to the operating system.

    The operating system allocates memory page by page and first fills each page with zeros, which takes a tenth of
    the time of a training step on a CPU, and a larger fraction with larger tensors. Does nothing with other C
    libraries, or if the user has configured malloc with environment variables.
    """
    configured = any(name.startswith("MALLOC_") for name in os.environ)
    configured = configured or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if configured or sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    libc.mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
    libc.mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
