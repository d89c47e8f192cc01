"""Freed memory is kept for the next tensor instead of going back to the system.

Training on a CPU allocates and frees the same large tensors in every step. glibc hands the largest
of them back each time, and the system gives them out again page by page, full of zeros.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from typing import Final

__all__ = ["reuse_freed_memory"]

# mallopt's numbers, from glibc's malloc.h
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
#: bytes that may lie idle at the end of the heap, and that one allocation may take from it
_KEPT: Final = 1 << 30
_PADDING: Final = 64 << 20


@functools.cache
def reuse_freed_memory() -> bool:
    """Let this process keep up to 1 GiB that it does not use at the moment; results stay the same.

    Does nothing (False) outside of glibc, and where the environment sets malloc's behaviour:
    whoever did that knows better.
    """
    chosen = os.environ.get("GLIBC_TUNABLES", "") + os.environ.get("LD_PRELOAD", "")
    if "malloc" in chosen or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    limits = {_M_MMAP_THRESHOLD: _KEPT, _M_TRIM_THRESHOLD: _KEPT, _M_TOP_PAD: _PADDING}
    return all(mallopt(name, value) == 1 for name, value in limits.items())
