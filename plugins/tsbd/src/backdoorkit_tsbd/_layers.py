"""Which weights hold the neurons that TSBD ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backdoorkit.api import PrunableLayer, Structure

__all__ = ["last_ranked", "ranked_layers", "ranked_weights"]

_ROWS = ("linear", "attention")


def ranked_layers(
    structure: Structure, choice: str, method: str = "tsbd"
) -> tuple[PrunableLayer, ...]:
    """Layers whose units are ranked; never a shortcut's or the head.

    ``choice`` is ``conv``, ``linear`` (with the rows of attention projections) or ``auto``:
    convolutions, except in a transformer, where the only one embeds patches.

    Raises
    ------
    StructureError
        where the model has no such layer; in the name of ``method``.

    """
    if choice == "auto":
        is_convolutional = len(structure.layers("conv")) > 1 or not structure.layers(*_ROWS)
        choice = "conv" if is_convolutional else "linear"
    kinds = ("conv",) if choice == "conv" else _ROWS
    return structure.require_layers(method, *kinds)


def ranked_weights(structure: Structure, choice: str, method: str = "tsbd") -> tuple[str, ...]:
    """Names of the weights whose first axis is ranked, as :func:`ranked_layers`."""
    return tuple(layer.weight for layer in ranked_layers(structure, choice, method))


def last_ranked(structure: Structure, weights: tuple[str, ...]) -> str:
    """The last convolution's weight where it is among ``weights``, else the last of them."""
    last = structure.last_convolution
    found = [layer.weight for layer in structure.layers("conv") if layer.name == last]
    return found[0] if found and found[0] in weights else weights[-1]
