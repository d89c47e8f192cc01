"""Assets of attacks in the store, under content keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
from safetensors.torch import load_file

from backdoorkit.assets import AssetRecord
from backdoorkit.pipeline.keys import content_key
from backdoorkit.pipeline.tensors import save_tensors

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Mapping

    from torch import Tensor

    from backdoorkit.pipeline.store import Store

__all__ = ["StoreShelf"]

_KIND: Final = "asset"


class StoreShelf:
    """The assets of one attack on one data set at one seed.

    ``identity`` says so: whose code made them, from what, at which seed. Equal identity, name and
    facts are the same asset, whichever run made it.
    """

    def __init__(self, store: Store, identity: Mapping[str, Any]) -> None:
        self._store = store
        self._identity = identity

    def load(
        self, name: str, facts: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor], AssetRecord] | None:
        """As :meth:`backdoorkit.assets.AssetShelf.load`; damaged assets are made again."""
        artifact = self._store.get(_KIND, self._key(name, facts))
        if artifact is None:
            return None
        tensors = load_file(artifact.file("asset.safetensors"))
        return tensors, AssetRecord(**artifact.facts["record"], reused=True)

    def claim(self, name: str, facts: Mapping[str, Any]) -> contextlib.AbstractContextManager[None]:
        """As :meth:`backdoorkit.assets.AssetShelf.claim`."""
        return self._store.claim(_KIND, self._key(name, facts))

    def save(self, tensors: Mapping[str, Tensor], record: AssetRecord) -> None:
        """As :meth:`backdoorkit.assets.AssetShelf.save`."""
        with self._store.create(_KIND, self._key(record.name, record.facts)) as draft:
            save_tensors(draft, "asset", tensors)
            facts = attrs.asdict(record)
            del facts["reused"]
            draft.facts["record"] = facts
            draft.facts["identity"] = dict(self._identity)

    def _key(self, name: str, facts: Mapping[str, Any]) -> str:
        return content_key(kind=_KIND, **self._identity, name=name, facts=facts)
