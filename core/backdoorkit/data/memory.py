"""How much memory a set of images may take before it is streamed instead.

One rule for hosts and accelerators: a set may take a quarter of what is free, because a training
subset and its poisoned copy stand beside the whole set. Results do not depend on it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import torch

from backdoorkit.errors import InputError

__all__ = ["BUDGET_VARIABLE", "fits_in_memory", "fits_on_device", "memory_budget"]

#: environment variable that sets the host's budget, in GiB
BUDGET_VARIABLE: Final = "BACKDOORKIT_IMAGE_MEMORY_GIB"
_SHARE: Final = 4
_GIB: Final = 2**30
#: assumed free where the operating system does not say
_UNKNOWN: Final = 8 * _GIB


def memory_budget() -> int:
    """Bytes that one set of images may take in host memory.

    A quarter of the memory that is free, or ``BACKDOORKIT_IMAGE_MEMORY_GIB`` where that is set.
    """
    text = os.environ.get(BUDGET_VARIABLE)
    if text is None:
        return _free_memory() // _SHARE
    try:
        budget = float(text)
    except ValueError:
        budget = -1.0
    if not 0 <= budget < 2**30:  # also refuses NaN
        raise InputError(f"{BUDGET_VARIABLE} must be a number of GiB, such as 2.5, not {text!r}")
    return int(budget * _GIB)


def fits_in_memory(size: int) -> bool:
    """Whether images of ``size`` bytes are kept in host memory."""
    return size <= memory_budget()


def fits_on_device(size: int, device: torch.device) -> bool:
    """Whether images of ``size`` bytes are kept on ``device``; host memory was checked before."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return size <= free // _SHARE


def _free_memory() -> int:
    """Bytes that this process could still take, within its container's limit."""
    return min(_host_memory(), _container_memory())


def _host_memory() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        # No word on what is free: count on half of what there is.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):
        return _UNKNOWN


def _container_memory(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """What a Linux control group (version 2) leaves; very much where there is no limit."""
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = (folder / "memory.current").read_text(encoding="ascii").strip()
    except OSError:
        return 2**62
    return max(0, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else 2**62
