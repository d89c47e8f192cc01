"""Artifacts in a shared folder or in object storage, by kind and content key.

An artifact's files lie in a folder named after the digest of its manifest, beside which the
manifest is put last, whole. So a reader finds all of an artifact or nothing, and two writers never
mix theirs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from backdoorkit.executing import MANIFEST, Artifact, DamagedArtifactError, InputError, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backdoorkit.executing import Draft

__all__ = ["Mirror", "MirroredStore"]

log = logging.getLogger(__name__)


class Mirror:
    """Artifacts below a URL that fsspec opens.

    Raises
    ------
    InputError
        where the URL is none, or its package is not installed.

    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped, unused-ignore]

        self.url = url
        try:
            # Others write here while this process runs.
            self._files, root = url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise InputError(f"storage {url} cannot be used: {error}") from None
        self._root = root.rstrip("/")

    def require_writable(self) -> None:
        """Write and remove a small file.

        Raises
        ------
        InputError
            where that is not possible.

        """
        path = f"{self._root}/probe-{secrets.token_hex(4)}"
        try:
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(path, b"backdoorkit")
            self._files.rm_file(path)
        except Exception as error:  # each file system has errors of its own
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"storage {self.url} cannot be written: {reason}") from error

    def has(self, kind: str, key: str) -> bool:
        """Whether the artifact is there."""
        return bool(self._files.exists(self._manifest(kind, key)))

    def upload(self, artifact: Artifact) -> None:
        """Put an artifact there, unless it is there already."""
        manifest = self._manifest(artifact.kind, artifact.key)
        if self._files.exists(manifest):
            return
        folder = self._folder(artifact.kind, artifact.key, artifact.digest)
        for name in artifact.files:
            self._put(artifact.path / name, f"{folder}/{name}")
        draft = f"{folder}/{MANIFEST}"
        self._put(artifact.path / MANIFEST, draft)
        self._files.mv(draft, manifest)

    def download(self, kind: str, key: str, store: Store) -> Artifact | None:
        """Take an artifact into the store, compared with its checksums; None where there is none.

        What is damaged is removed, with a warning, so that it is made again.
        """
        try:
            content = self._files.cat_file(self._manifest(kind, key))
        except FileNotFoundError:
            return None
        try:
            return store.adopt(kind, key, lambda folder: self._fetch(kind, key, content, folder))
        except (DamagedArtifactError, FileNotFoundError, ValueError, LookupError) as error:
            log.warning("%s %s in %s is damaged (%s) and is removed", kind, key, self.url, error)
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(self._manifest(kind, key))
            return None

    def _fetch(self, kind: str, key: str, content: bytes, target: Path) -> None:
        manifest: dict[str, Any] = json.loads(content)
        folder = self._folder(kind, key, manifest["digest"])
        for name in manifest["files"]:
            plain = PurePosixPath(name)
            if plain.is_absolute() or ".." in plain.parts:
                raise ValueError(f"it names a file outside: {name!r}")
            path = target / plain
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files.get_file(f"{folder}/{name}", str(path))
        (target / MANIFEST).write_bytes(content)

    def _put(self, source: Path, target: str) -> None:
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(source), target)

    def _manifest(self, kind: str, key: str) -> str:
        return f"{self._root}/{kind}/{key}/{MANIFEST}"

    def _folder(self, kind: str, key: str, digest: str) -> str:
        return f"{self._root}/{kind}/{key}/{digest[:16]}"


class MirroredStore(Store):
    """A node's own store: what it lacks comes from the mirror, what it makes goes there."""

    def __init__(self, root: Path | str, mirror: Mirror) -> None:
        super().__init__(root)
        self._mirror = mirror

    def get(self, kind: str, key: str) -> Artifact | None:
        """As :meth:`Store.get`."""
        found = super().get(kind, key)
        return self._mirror.download(kind, key, self) if found is None else found

    @contextlib.contextmanager
    def create(self, kind: str, key: str) -> Iterator[Draft]:
        """As :meth:`Store.create`; the artifact is in the mirror when the block has ended."""
        with super().create(kind, key) as draft:
            yield draft
        made = super().get(kind, key)
        if made is not None:
            self._mirror.upload(made)
