"""Writes ``docs/methods/pictures/NAME.png``: the contact sheet of each attack here.

    python docs/pictures.py [NAME ...]

Handwritten digits as they are, with the trigger, and the difference times ten; covers below, where
the attack makes its own. Without names, all attacks of this repository's distributions.
"""

from __future__ import annotations

import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from backdoorkit.hooks.info import Kind
from backdoorkit.hooks.registry import Method, Registry, load_registry, resolve_config
from backdoorkit.pipeline.recipe import Recipe
from backdoorkit.pipeline.store import Store

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "methods" / "pictures"
#: long enough for a trigger that is learned while the victim trains
CONTROLLED_EPOCHS = 5
#: less work than by default, for pictures of the same sort in minutes
SETTINGS: dict[str, dict[str, Any]] = {
    "hidden-trigger": {"surrogate_epochs": 2, "steps": 10},
    "ssba": {"steps": 800},
    "trojannn": {"surrogate_epochs": 5, "steps": 300, "backgrounds": 8},
}


def attacks(registry: Registry) -> list[Method]:
    """The attacks of this repository."""
    files = ROOT.glob("plugins/*/pyproject.toml")
    ours = {tomllib.loads(file.read_text(encoding="utf-8"))["project"]["name"] for file in files}
    return [method for method in registry.methods(Kind.ATTACK) if method.distribution in ours]


def draw(registry: Registry, attack: Method, store: Store) -> Path:
    """Carry the attack out on the digits and write its sheet."""
    from backdoorkit._progress import SILENT
    from backdoorkit.pipeline.runner import run_recipe
    from backdoorkit.report.pictures import write_sheet

    settings = SETTINGS.get(attack.name, {})
    controls = resolve_config(attack, settings).controls_training
    recipe = Recipe.from_mapping(
        {
            "data": {"name": "digits", "size": 32, "channels": 3},
            "train": {"epochs": CONTROLLED_EPOCHS if controls else 0},
            "attacks": [{"name": attack.name, **settings}],
            "device": "cpu",
        },
        registry,
    )
    result = run_recipe(recipe, registry, store, progress=SILENT)
    if not result.victims:
        raise SystemExit(result.table.to_text())
    (victim,) = result.victims.values()
    return write_sheet(victim.file("samples.safetensors"), TARGET, attack.name)


def main(names: list[str]) -> None:
    """Draw the attacks called ``names``, or all."""
    registry = load_registry()
    wanted = [registry.find(name, Kind.ATTACK) for name in names] or attacks(registry)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        for attack in wanted:
            path = draw(registry, attack, store)
            sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
