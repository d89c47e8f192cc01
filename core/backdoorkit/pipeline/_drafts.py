"""Names of drafts say which process makes them, so that a dead one's can be told from a live one's.

A process is its number together with its start time, because numbers are used again.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import secrets
import shutil
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["draft_name", "is_abandoned", "remove_abandoned"]

log = logging.getLogger(__name__)

#: After so many seconds without a change a draft of another machine is given up too.
_FORGOTTEN: Final = 7 * 24 * 3600.0


def draft_name() -> str:
    """``machine-process-start-random``; unique."""
    process = os.getpid()
    return f"{_machine()}-{process}-{_start_of(process)}-{secrets.token_hex(4)}"


def remove_abandoned(drafts: Path) -> None:
    """Remove from the folder ``drafts`` what nobody can finish any more."""
    for path in drafts.iterdir():
        if is_abandoned(path):
            log.info("removing %s, left by a process that was killed", path)
            shutil.rmtree(path, ignore_errors=True)


def is_abandoned(path: Path) -> bool:
    """Whether whoever made the draft at ``path`` can no longer finish it."""
    machine, _, rest = path.name.partition("-")
    process, _, rest = rest.partition("-")
    start = rest.partition("-")[0]
    # Windows has no harmless way to ask whether a process lives; there, age decides alone.
    if machine == _machine() and process.isdigit() and os.name == "posix":
        return not _is_alive(int(process), start)
    try:
        return time.time() - path.stat().st_mtime > _FORGOTTEN
    except OSError:
        return False  # gone already


@functools.cache
def _machine() -> str:
    """Differs between machines that share a store, and between containers on one machine."""
    try:
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:
        processes = ""
    return hashlib.sha256(f"{platform.node()} {processes}".encode()).hexdigest()[:8]


def _start_of(process: int) -> str:
    """Start of a process in ticks since the machine started, or ``0`` where that is not known."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as stream:
            # The name, second and in brackets, may itself hold blanks and brackets.
            return stream.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "0"


def _is_alive(process: int, start: str) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return _start_of(process) in (start, "0") or start == "0"
