"""The store: a directory of artifacts, each whole and checked, or not there at all.

An artifact is written into a draft beside the others and takes its place by one rename, with its
manifest written last. A process that is killed leaves a draft, which the next one removes; nobody
ever sees half an artifact. When one is read, every file is compared with its checksum; a damaged
artifact is set aside and made again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from backdoorkit.errors import BackdoorkitError, DamagedArtifactError, InputError
from backdoorkit.pipeline._claims import claimed
from backdoorkit.pipeline._drafts import draft_name, remove_abandoned
from backdoorkit.pipeline._slots import Slot
from backdoorkit.pipeline.keys import canonical_json

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

__all__ = ["MANIFEST", "Artifact", "Draft", "Slot", "Store", "StoreError", "read_artifact"]

log = logging.getLogger(__name__)

#: Name of the file that describes an artifact; written last.
MANIFEST: Final = "manifest.json"
#: Digits of a key that name its directory; the manifest holds all of them.
_NAME_DIGITS: Final = 24
_FULL: Final = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


class StoreError(BackdoorkitError):
    """The store cannot be read or written: the disk is full, or rights are missing."""


@attrs.frozen(kw_only=True)
class Artifact:
    """One finished thing in the store, compared with its checksums."""

    path: Path
    kind: str
    key: str
    #: what its maker had to say about it, JSON-ready
    facts: Mapping[str, Any]
    #: names of its files, relative to ``path``, with ``/`` between folders
    files: tuple[str, ...]
    #: when it was made, ISO 8601 in UTC
    created: str
    #: of the manifest, which holds the checksums of all files: changes with anything in it
    digest: str

    def file(self, name: str) -> Path:
        """Path of one of its files; :class:`DamagedArtifactError` where it has no such file."""
        if name not in self.files:
            raise DamagedArtifactError(
                f"artifact {self.kind} {self.key[:_NAME_DIGITS]} has no file {name!r} "
                f"(it has {', '.join(self.files) or 'none'}); remove {self.path} to have it made "
                "again"
            )
        return self.path / name

    def read_json(self, name: str) -> Any:
        """Content of one of its JSON files."""
        return json.loads(self.file(name).read_text(encoding="utf-8"))


@attrs.frozen(kw_only=True)
class Draft:
    """An artifact that is being made: write files below ``path``, and facts into ``facts``."""

    path: Path
    facts: dict[str, Any] = attrs.field(factory=dict)

    def write_json(self, name: str, value: Any) -> None:
        """Write ``value`` as JSON into the file ``name``."""
        text = json.dumps(value, indent=2, ensure_ascii=False)
        self.write_bytes(name, f"{text}\n".encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write ``content`` into the file ``name``."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


class Store:
    """Artifacts by kind and key below the directory ``root``, which is made where missing.

    Raises
    ------
    InputError
        where ``root`` is not a directory, or cannot be made or written.

    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()
        self._checked: dict[Path, tuple[tuple[str, int, int], ...]] = {}
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise InputError(
                f"the store must be a directory, and {self.root} is (or is below) a file; "
                "choose another place"
            ) from None
        except OSError as error:
            raise InputError(
                f"the store {self.root} cannot be made: {error.strerror}; choose another place"
            ) from None
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise InputError(f"the store {self.root} cannot be written; choose another place")

    def get(self, kind: str, key: str) -> Artifact | None:
        """The artifact, or None where there is none.

        Every file is compared with its checksum (once per process, unless it changes). A damaged
        artifact is moved to ``damaged/`` with a warning, and counts as missing.
        """
        path = self._place("artifacts", kind, key)
        if not path.is_dir():
            return None
        try:
            return self._read(path, kind, key)
        except FileNotFoundError as error:
            if not path.is_dir():  # set aside by another process meanwhile
                return None
            reason = f"{Path(error.filename).name} is missing"
        except OSError as error:
            raise StoreError(f"stored {kind} cannot be read: {error}") from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            reason = str(error)
        self._set_aside(path, kind, key, reason)
        return None

    def has(self, kind: str, key: str) -> bool:
        """Whether there seems to be an artifact; its files are not looked at."""
        return self._place("artifacts", kind, key).is_dir()

    @contextlib.contextmanager
    def create(self, kind: str, key: str) -> Iterator[Draft]:
        """A draft that becomes the artifact when the block ends, and vanishes where it raises.

        Where another process has finished the same artifact first, theirs is kept.

        Raises
        ------
        StoreError
            where the disk is full or the store cannot be written.

        """
        final = self._place("artifacts", kind, key)
        with self._draft_folder() as path:
            draft = Draft(path=path)
            with _explained(self.root, always=False):
                yield draft
            with _explained(self.root, always=True):
                _write_manifest(draft, kind, key)
                self._publish(path, final, kind, key)
        self.slot(kind, key).clear()

    @contextlib.contextmanager
    def claim(self, kind: str, key: str) -> Iterator[None]:
        """For the block, be the only one of all processes who makes the artifact; wait for others.

        Ask for the artifact inside the block: another may have finished it. A claim is gone when
        its process is. On file systems without locks nobody waits, and whoever is first wins.
        """
        room = self.root / "claims"
        with _explained(self.root, always=True):
            room.mkdir(exist_ok=True)
        path = self._place("claims", kind, key)
        with claimed(room / f"{kind}-{path.name}"):
            yield

    def adopt(self, kind: str, key: str, fetch: Callable[[Path], None]) -> Artifact:
        """The artifact from elsewhere: ``fetch`` copies its files, and manifest, into a folder.

        Raises
        ------
        DamagedArtifactError
            where what came is not whole, or another artifact; nothing is kept then.

        """
        with self._draft_folder() as path:
            fetch(path)
            artifact = read_artifact(path)
            if (artifact.kind, artifact.key) != (kind, key):
                raise DamagedArtifactError(f"is {artifact.kind} {artifact.key[:_NAME_DIGITS]}")
            with _explained(self.root, always=True):
                for file in path.rglob("*"):
                    _flush(file) if file.is_dir() else _flush_and_hash(file)
                _flush(path)
                self._publish(path, self._place("artifacts", kind, key), kind, key)
        found = self.get(kind, key)
        if found is None:
            raise DamagedArtifactError("was damaged as soon as it was stored")
        return found

    def slot(self, kind: str, key: str, *, interval: float = 20.0) -> Slot:
        """A place for checkpoints of the artifact while it is made; it outlives a killed process.

        ``interval`` is the least time in seconds between two checkpoints.
        """
        return Slot(self._place("slots", kind, key), interval=interval)

    # -- inside ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _draft_folder(self) -> Iterator[Path]:
        """A folder to write in, which is gone after the block unless it was moved."""
        path: Path | None = None
        try:
            with _explained(self.root, always=True):
                drafts = self.root / "drafts"
                drafts.mkdir(exist_ok=True)
                remove_abandoned(drafts)
                path = drafts / draft_name()
                path.mkdir()
            yield path
        finally:
            if path is not None:
                shutil.rmtree(path, ignore_errors=True)

    def _place(self, room: str, kind: str, key: str) -> Path:
        if not kind.isidentifier() or len(key) < _NAME_DIGITS or not key.isalnum():
            raise ValueError(f"not a kind and a key: {kind!r}, {key!r}")
        return self.root / room / kind / key[:_NAME_DIGITS]

    def _read(self, path: Path, kind: str, key: str) -> Artifact:
        manifest, digest = _read_manifest(path)
        if (manifest["kind"], manifest["key"]) != (kind, key):
            raise ValueError(f"{MANIFEST} is that of {manifest['kind']} {manifest['key']}")
        files = manifest["files"]
        state = tuple(_state(path, name) for name in files)
        if self._checked.get(path) != state:
            for name, expected in files.items():
                _compare(path / name, expected)
            self._checked[path] = state
        return _artifact(path, manifest, digest)

    def _publish(self, path: Path, final: Path, kind: str, key: str) -> None:
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.rename(final)
        except OSError:
            if not final.exists():
                raise
            # Another process was first: theirs is kept, unless it is damaged.
            if self.get(kind, key) is None:
                path.rename(final)
        _flush(final.parent)

    def _set_aside(self, path: Path, kind: str, key: str, reason: str) -> None:
        room = self.root / "damaged"
        target = room / f"{kind}-{key[:_NAME_DIGITS]}-{secrets.token_hex(4)}"
        with _explained(self.root, always=True):
            room.mkdir(exist_ok=True)
            # Gone already: another process has set it aside.
            with contextlib.suppress(FileNotFoundError):
                path.rename(target)
        self._checked.pop(path, None)
        log.warning(
            "stored %s %s is damaged (%s); it was moved to %s and will be made again",
            kind,
            key[:_NAME_DIGITS],
            reason,
            target,
        )


def read_artifact(path: Path, files: Collection[str] | None = None) -> Artifact:
    """An artifact in any folder, as it was copied out of a store.

    All its files are compared with their checksums, or only those of ``files`` that it has.
    Raises :class:`DamagedArtifactError` where it is not whole or is none.
    """
    try:
        manifest, digest = _read_manifest(path)
        for name, expected in manifest["files"].items():
            _state(path, name)
            if files is None or name in files:
                _compare(path / name, expected)
        return _artifact(path, manifest, digest)
    except FileNotFoundError as error:
        raise DamagedArtifactError(f"{Path(error.filename).name} is missing") from None
    except OSError as error:
        raise DamagedArtifactError(f"cannot be read: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedArtifactError(f"damaged: {error}") from None


def _read_manifest(path: Path) -> tuple[dict[str, Any], str]:
    """The manifest and its digest, compared with each other."""
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    digest = manifest.pop("digest", None) if isinstance(manifest, dict) else None
    if digest is None or digest != _digest(manifest):
        raise ValueError(f"{MANIFEST} does not match its checksum")
    return manifest, digest


def _artifact(path: Path, manifest: Mapping[str, Any], digest: str) -> Artifact:
    return Artifact(
        path=path,
        kind=manifest["kind"],
        key=manifest["key"],
        facts=manifest["facts"],
        files=tuple(manifest["files"]),
        created=manifest["created"],
        digest=digest,
    )


@contextlib.contextmanager
def _explained(root: Path, *, always: bool) -> Iterator[None]:
    """Say in one line that the store cannot be written; ``always``: whatever the reason is."""
    try:
        yield
    except Exception as error:
        # safetensors reports a full disk as an error of its own, by words.
        if getattr(error, "errno", None) in _FULL or os.strerror(errno.ENOSPC) in str(error):
            raise StoreError(
                f"the disk of the store {root} is full; free some space and run the same command "
                "again to go on"
            ) from error
        if always and isinstance(error, OSError):
            raise StoreError(f"the store {root} cannot be written: {error}") from error
        raise


def _write_manifest(draft: Draft, kind: str, key: str) -> None:
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(draft.path.rglob("*")):
        if path.is_dir():
            _flush(path)
        else:
            name = path.relative_to(draft.path).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": _flush_and_hash(path)}
    manifest: dict[str, Any] = {
        "kind": kind,
        "key": key,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "facts": json.loads(json.dumps(draft.facts)),
        "files": files,
    }
    manifest["digest"] = _digest(manifest)
    draft.write_json(MANIFEST, manifest)
    _flush_and_hash(draft.path / MANIFEST)
    _flush(draft.path)


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(manifest).encode()).hexdigest()


def _state(path: Path, name: str) -> tuple[str, int, int]:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{MANIFEST} names a file outside the artifact: {name!r}")
    status = (path / name).lstat()
    return (name, status.st_size, status.st_mtime_ns)


def _compare(path: Path, expected: Mapping[str, Any]) -> None:
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"{path.name} is not a plain file")
    if path.stat().st_size != expected["bytes"]:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {expected['bytes']}")
    with path.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != expected["sha256"]:
            raise ValueError(f"{path.name} does not match its checksum")


def _flush_and_hash(path: Path) -> str:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(directory: Path) -> None:
    """Have the directory's entries written to the disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
