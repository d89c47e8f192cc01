"""One process at a time makes an artifact: a lock that is gone when its holder is."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["claimed"]

log = logging.getLogger(__name__)

#: What a file system says that cannot lock.
_NO_LOCKS: Final = {
    getattr(errno, name, errno.ENOSYS) for name in ("ENOLCK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS")
}


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Wait until no other process (nor thread) holds ``path``, then hold it for a block.

    Where the file system knows no locks, nobody waits: then two may make the same, and the first
    to end wins.
    """
    descriptor = _lock(path)
    try:
        yield
    finally:
        if descriptor is not None:
            # While the lock is held: who waits for it finds that the file is another, or gone.
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _lock(path: Path) -> int | None:
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        held = False
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.warning("waiting for another process, which is making %s", path.name)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            held = os.path.samestat(os.fstat(descriptor), os.stat(path))
        except FileNotFoundError:
            pass  # who held it has removed it
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return None
            raise
        finally:
            if not held:
                os.close(descriptor)
        if held:
            return descriptor
