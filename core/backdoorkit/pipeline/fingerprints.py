"""The plan of a recipe, with what identifies the data and the files it names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from backdoorkit.data.contents import file_digest
from backdoorkit.pipeline.plan import make_plan

if TYPE_CHECKING:
    from backdoorkit.hooks.registry import Registry
    from backdoorkit.pipeline.plan import Plan
    from backdoorkit.pipeline.recipe import DataChoice, Recipe

__all__ = ["plan_of"]


def plan_of(recipe: Recipe, registry: Registry) -> Plan:
    """All steps of a recipe; equal on every machine that has the same data, files and plugins.

    Raises
    ------
    InputError
        where the recipe names data or files that cannot be read.

    """
    return make_plan(
        recipe,
        data_fingerprint=lambda choice: _fingerprint(registry, choice),
        file_fingerprint=lambda path: file_digest(Path(path)),
    )


def _fingerprint(registry: Registry, choice: DataChoice) -> str:
    dataset = registry.create(choice.method, choice.config)
    fingerprint: str = dataset.fingerprint()
    return fingerprint
