"""Memory of the host that one step of training frees and the next asks for again."""

import ctypes
import os
import sys

FREE_AT_MOST, BLOCK_AT_MOST = 2**31 - 1, 32 * 2**20
"""Bytes kept while nobody uses them, and the largest block that is kept: the most that malloc takes for either."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of the settings, in malloc.h."""


def keep_freed() -> None:
    """Has glibc's malloc keep freed memory for the next step, where it would give it back to the system.

    What comes from the system comes page by page, each filled with zeros first: a tenth of a training step on a CPU,
    and more the larger its tensors. Other C libraries and a person's own settings of malloc are left as they are.
    """
    own = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if own or sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    libc.mallopt(_TRIM_THRESHOLD, FREE_AT_MOST)
    libc.mallopt(_MMAP_THRESHOLD, BLOCK_AT_MOST)
