"""Which arithmetic the hardware does fast: bfloat16 or float32."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

import torch

__all__ = ["autocast", "resolve_precision", "supports_bfloat16"]

_CPU_FLAGS: Final = frozenset({"amx_bf16", "avx512_bf16"})


def supports_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 matrices in hardware, so that it is really faster.

    A CPU that merely emulates bfloat16 is slower with it than with float32 and says False.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # Public but untyped: torch.backends.mkldnn.is_available() says whether oneDNN is there.
        return torch._C._has_mkldnn and _cpu_multiplies_bfloat16()
    return False


def resolve_precision(choice: str, device: torch.device) -> torch.dtype | None:
    """The autocast type for ``"auto"``, ``"float32"`` or ``"bfloat16"``; None is plain float32."""
    if choice == "bfloat16" or (choice == "auto" and supports_bfloat16(device)):
        return torch.bfloat16
    return None


def autocast(device: torch.device, precision: torch.dtype | None) -> torch.autocast:
    """Autocast to ``precision`` on ``device``; with None, autocast is switched off inside."""
    return torch.autocast(
        device.type, dtype=precision or torch.bfloat16, enabled=precision is not None
    )


@functools.cache
def _cpu_multiplies_bfloat16() -> bool:
    # Private in torch and absent from some builds; the kernel's list of flags says the same.
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    known = [probe for name in names if (probe := getattr(torch.cpu, name, None)) is not None]
    if known:
        return any(bool(probe()) for probe in known)
    return not _CPU_FLAGS.isdisjoint(_cpu_flags(Path("/proc/cpuinfo")))


def _cpu_flags(cpuinfo: Path) -> frozenset[str]:
    """Feature flags of the first processor in Linux's ``cpuinfo``; empty elsewhere."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())
