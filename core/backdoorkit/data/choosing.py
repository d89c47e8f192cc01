"""Who is poisoned, in a training set or in a batch, who becomes a cover, and under which label."""

from __future__ import annotations

from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal
from typing import Final

import attrs
import torch
from torch import Generator, Tensor

from backdoorkit.errors import InputError
from backdoorkit.hooks.shared_options import LabelMapping, PoisonOptions, RateBasis

__all__ = [
    "NOT_ATTACKED",
    "Chosen",
    "check_options",
    "choose_covers",
    "choose_in_batch",
    "choose_positions",
    "map_labels",
    "rescaled",
]

#: wanted label of an image that the attacker does not attack
NOT_ATTACKED: Final = -1
_POOLS: Final = {
    RateBasis.ALL: "samples",
    RateBasis.APPEND: "samples",
    RateBasis.SOURCE_CLASSES: "samples of the source classes",
    RateBasis.ALL_WITHIN_TARGET: "samples of the target class",
    RateBasis.TARGET_CLASS: "samples of the target class",
    RateBasis.NON_TARGET: "samples outside the target class",
}


def map_labels(labels: Tensor, options: PoisonOptions, num_classes: int) -> Tensor:
    """int64, N: the label that the attacker wants for each sample of class ``labels``.

    ``NOT_ATTACKED`` (-1) where a source-specific map leaves the class alone.
    """
    _check_classes(options, num_classes)
    if options.label_map is LabelMapping.ALL_TO_ALL:
        return (labels + 1) % num_classes
    wanted = torch.full_like(labels, options.target)
    if options.label_map is LabelMapping.SOURCE_SPECIFIC:
        return wanted.where(_is_source(labels, options), NOT_ATTACKED)
    return wanted


def choose_positions(
    labels: Tensor, options: PoisonOptions, num_classes: int, generator: Generator
) -> Tensor:
    """int64, ascending: who is poisoned, ``poison_rate`` of ``rate_basis``.

    The count is the rate times the size of its basis, rounded half up; the rate is taken as
    written in decimal, so that 0.29 of 50 is 14.5 and gives 15. (Released codes round or truncate;
    the difference is one sample.) The choice depends on the generator and the labels alone.

    Raises
    ------
    InputError
        where that is more than there are candidates, or none although the rate is not 0.

    """
    _check_classes(options, num_classes)
    candidates, basis = _candidates(labels, options), _basis(labels, options)
    available = candidates.nonzero().flatten()
    wanted = _count(options.poison_rate, basis)
    _check_count(options, wanted, basis, len(available))
    return _drawn(available, wanted, generator)


def check_options(labels: Tensor, options: PoisonOptions, num_classes: int) -> None:
    """Refuse, as :func:`choose_positions`, what a training set with ``labels`` does not offer."""
    choose_positions(labels, options, num_classes, torch.Generator())


def rescaled(options: PoisonOptions, labels: Tensor, rest: Tensor) -> PoisonOptions:
    """``options`` under which a part of a training set is poisoned as often as all of it would be.

    ``labels`` and ``rest`` (int64) are the labels of the whole and of the part.

    Raises
    ------
    InputError
        where the part is too small for that.

    """
    size, basis = _basis(labels, options), _basis(rest, options)
    wanted = _count(options.poison_rate, size)
    _check_count(options, wanted, size, basis)
    return attrs.evolve(options, poison_rate=wanted / basis if wanted else 0.0)


def choose_covers(
    labels: Tensor, options: PoisonOptions, poisoned: Tensor, generator: Generator
) -> Tensor:
    """int64, ascending: who becomes a cover; none of them is poisoned."""
    taken = torch.zeros_like(labels, dtype=torch.bool)
    if options.rate_basis is not RateBasis.APPEND:
        taken[poisoned] = True
    available = (~taken & _cover_candidates(labels, options)).nonzero().flatten()
    wanted = _rounded(options.cover_ratio, len(poisoned), ROUND_HALF_UP)
    if wanted > len(available):
        raise InputError(
            f"cover_ratio {options.cover_ratio:g} wants {wanted} covers for {len(poisoned)} "
            f"poisoned samples and {len(available)} may become covers; lower the ratio"
        )
    return _drawn(available, wanted, generator) if wanted else poisoned[:0]


@attrs.frozen(eq=False)
class Chosen:
    """Rows of a batch, of which those count that are ``valid``; their number is known to the host,
    so that nobody waits for the device.
    """

    #: int64, n: rows of the batch, all different
    rows: Tensor
    #: bool, n
    valid: Tensor


def choose_in_batch(
    labels: Tensor, options: PoisonOptions, num_classes: int
) -> tuple[Chosen, Chosen]:
    """Who of a shuffled batch is poisoned, and who becomes a cover: the first that qualify.

    ``labels`` (int64, B) are the true classes. Counts are rounded down.
    """
    _check_classes(options, num_classes)
    candidates, size = _candidates(labels, options), len(labels)
    most = _rounded(options.poison_rate, size, ROUND_FLOOR)
    limit: Tensor | None = None
    if options.rate_basis not in (RateBasis.ALL, RateBasis.ALL_WITHIN_TARGET):
        # A small addition, since the product of binary numbers may be just below the decimal one.
        share = _basis_mask(labels, options).sum() * options.poison_rate
        limit = torch.floor(share + 1e-6)
    poisoned = _first(candidates, most, limit)
    if options.cover_ratio == 0:
        return poisoned, Chosen(poisoned.rows[:0], poisoned.valid[:0])
    # Rows that were looked at and did not qualify are free.
    taken = torch.zeros_like(candidates).index_copy(0, poisoned.rows, poisoned.valid)
    limit = torch.floor(poisoned.valid.sum() * options.cover_ratio + 1e-6)
    most = min(size, _rounded(options.cover_ratio, most, ROUND_FLOOR))
    return poisoned, _first(~taken & _cover_candidates(labels, options), most, limit)


def _is_source(labels: Tensor, options: PoisonOptions) -> Tensor:
    found = torch.zeros_like(labels, dtype=torch.bool)
    for source in options.source_classes:  # a few comparisons; a list would have to be copied
        found |= labels == source
    return found


def _basis_mask(labels: Tensor, options: PoisonOptions) -> Tensor:
    """bool, N: the samples that ``poison_rate`` is a share of."""
    match options.rate_basis:
        case RateBasis.TARGET_CLASS:
            return labels == options.target
        case RateBasis.NON_TARGET:
            return labels != options.target
        case RateBasis.SOURCE_CLASSES:
            return _is_source(labels, options)
    return torch.ones_like(labels, dtype=torch.bool)


def _basis(labels: Tensor, options: PoisonOptions) -> int:
    return int(_basis_mask(labels, options).sum())


def _candidates(labels: Tensor, options: PoisonOptions) -> Tensor:
    """bool, N: the samples that may be poisoned."""
    if options.rate_basis is RateBasis.ALL_WITHIN_TARGET:
        return labels == options.target
    if options.label_map is LabelMapping.SOURCE_SPECIFIC:
        return _is_source(labels, options)
    return _basis_mask(labels, options)


def _cover_candidates(labels: Tensor, options: PoisonOptions) -> Tensor:
    """bool, N: the samples that may become covers, where they are not poisoned."""
    if options.own_covers or options.label_map is not LabelMapping.SOURCE_SPECIFIC:
        return torch.ones_like(labels, dtype=torch.bool)
    return ~_is_source(labels, options)


def _drawn(available: Tensor, wanted: int, generator: Generator) -> Tensor:
    permutation = torch.randperm(len(available), generator=generator, device=generator.device)
    return available[permutation[:wanted].to(available.device)].sort().values


def _first(candidates: Tensor, most: int, limit: Tensor | None) -> Chosen:
    """The first ``most`` candidates of a batch, and no more than ``limit`` (on the device)."""
    rows = torch.argsort(~candidates, stable=True)[:most]
    valid = candidates[rows]
    if limit is not None:
        valid &= torch.arange(most, device=rows.device) < limit
    return Chosen(rows, valid)


def _count(rate: float, basis: int) -> int:
    return _rounded(rate, basis, ROUND_HALF_UP)


def _rounded(rate: float, basis: int, rounding: str) -> int:
    """``rate`` of ``basis``, with the rate as it is written in decimal."""
    return int((Decimal(repr(float(rate))) * basis).to_integral_value(rounding))


def _check_classes(options: PoisonOptions, num_classes: int) -> None:
    wrong = [c for c in options.source_classes if c >= num_classes]
    if wrong:
        raise InputError(
            f"source class {wrong[0]} is not a class of this data set; it has {num_classes} "
            f"classes, 0 to {num_classes - 1}"
        )
    if options.target >= num_classes:
        raise InputError(
            f"target {options.target} is not a class of this data set; it has {num_classes} "
            f"classes, 0 to {num_classes - 1}"
        )


def _check_count(options: PoisonOptions, wanted: int, basis: int, available: int) -> None:
    if options.poison_rate == 0:
        return
    pool = _POOLS[options.rate_basis]
    asked = f"poison_rate {options.poison_rate:g} with rate_basis {options.rate_basis.value!r}"
    if wanted > available:
        specific = options.label_map is LabelMapping.SOURCE_SPECIFIC
        offered = _POOLS[RateBasis.SOURCE_CLASSES] if specific else pool
        raise InputError(
            f"{asked} wants {wanted} {offered} and there are {available}; lower the rate"
        )
    if wanted == 0:
        raise InputError(
            f"{asked} is none of {basis} {pool}; raise the rate, or set it to 0 to poison nothing"
        )
