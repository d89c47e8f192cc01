"""Choosing a level (pruning threshold, ratio, t) on the defender's clean reserve alone."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from backdoorkit.data.splits import stratified_positions
from backdoorkit.errors import ContractError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Generator

    from backdoorkit.data.images import ImageSet

__all__ = ["largest_accepted", "split_reserve"]

# Levels only need an order; a bound that says so would make callers cast.
T = TypeVar("T", bound=Any)


def split_reserve(
    clean: ImageSet, held_out: float, generator: Generator
) -> tuple[ImageSet, ImageSet]:
    """Split the reserve, class by class, into a part to fit on and a held-out part to choose on.

    ``held_out`` is the held-out share in (0, 1). Each part must have at least as many images as
    there are classes in the reserve: with fewer, accuracy on it says nothing.
    """
    if not 0 < held_out < 1:
        raise ContractError(f"expected a held-out share between 0 and 1, got {held_out:g}")
    count = round(len(clean) * held_out)
    classes = len(torch.unique(clean.labels))
    if min(count, len(clean) - count) < max(1, classes):
        raise InputError(
            f"the clean reserve is too small to hold out a share of {held_out:g}: its "
            f"{len(clean)} images of {classes} classes would split into {len(clean) - count} to "
            f"fit on and {count} to choose on, and each part needs at least {max(1, classes)}; "
            "enlarge the reserve or choose a fixed level"
        )
    chosen = stratified_positions(clean.labels, count, generator)
    to_fit = torch.ones(len(clean), dtype=torch.bool)
    to_fit[chosen.cpu()] = False
    return clean.subset(to_fit.nonzero().flatten()), clean.subset(chosen)


def largest_accepted(
    levels: Sequence[T], accuracy_at: Callable[[T], float], floor: float
) -> T | None:
    """The last of the ascending ``levels`` before accuracy first falls below ``floor``.

    Levels beyond the first violation are not tried. None if already the first one violates it.
    """
    if any(after <= before for before, after in itertools.pairwise(levels)):
        raise ContractError(f"expected strictly ascending levels, got {list(levels)}")
    accepted: T | None = None
    for level in levels:
        # Written so that a NaN accuracy counts as a violation.
        if not accuracy_at(level) >= floor:
            break
        accepted = level
    return accepted
