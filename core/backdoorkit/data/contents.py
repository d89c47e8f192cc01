"""Which images these are: by what is in the files, wherever and since whenever they are there.

Reading all files takes as long as the disk needs, so what came out is kept for as long as the
files are the same ones: below ``$XDG_CACHE_HOME/backdoorkit/contents``, where that is not set
``~/.cache/backdoorkit/contents``.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backdoorkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["contents_digest", "file_digest"]

log = logging.getLogger(__name__)

_DIGEST: Final = re.compile("[0-9a-f]{64}")
#: Bytes that take long enough to read for somebody to wonder.
_MUCH: Final = 4 << 30
#: Seconds in which a file may change again without its time of change showing it.
_FRESH: Final = 2.0


def contents_digest(files: Mapping[str, Path]) -> str:
    """Changes with the names (the keys, in any order) and contents of ``files``; hexadecimal.

    Raises :class:`InputError` where a file cannot be read.
    """
    named = sorted(files.items())
    facts = {name: _facts(path) for name, path in named}
    state = hashlib.sha256()
    for name, path in named:
        found = facts[name]
        values = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        state.update(repr((name, str(path.absolute()), values)).encode())
    kept = _folder() / state.hexdigest()
    if (known := _read(kept)) is not None:
        return known
    size = sum(found.st_size for found in facts.values())
    if size > _MUCH:
        log.warning("reading %.0f GB of images once, to know them again", size / 1e9)
    digest = hashlib.sha256()
    for name, path in named:
        digest.update(repr((name, file_digest(path))).encode())
    latest = max((max(f.st_mtime, f.st_ctime) for f in facts.values()), default=0.0)
    if time.time() - latest > _FRESH:
        _keep(kept, digest.hexdigest())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of what is in a file; hexadecimal.

    Raises :class:`InputError` where it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from None


def _facts(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"file {path} cannot be read: {error.strerror}")


def _folder() -> Path:
    chosen = os.environ.get("XDG_CACHE_HOME")
    return (Path(chosen) if chosen else Path.home() / ".cache") / "backdoorkit" / "contents"


def _read(kept: Path) -> str | None:
    try:
        found = kept.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return found if _DIGEST.fullmatch(found) else None


def _keep(kept: Path, digest: str) -> None:
    """Where it cannot be kept, the files are read again the next time."""
    draft = kept.with_name(f"{kept.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(digest, encoding="ascii")
        draft.replace(kept)
