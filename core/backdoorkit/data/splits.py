"""Who trains on what: subsets and the defender's reserve, drawn class by class."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Generator, Tensor

from backdoorkit.errors import InputError

if TYPE_CHECKING:
    from backdoorkit.data.options import DataOptions

__all__ = ["Splits", "make_splits", "spread_positions", "stratified_positions"]


@attrs.frozen(eq=False)
class Splits:
    """Positions (int64, ascending, on the CPU) of a run's three parts."""

    #: what the victim trains on, in the training split
    train: Tensor
    #: the defender's clean samples, in the training split
    reserve: Tensor
    #: what metrics are measured on, in the test split
    test: Tensor


def make_splits(
    train_labels: Tensor, test_labels: Tensor, options: DataOptions, generator: Generator
) -> Splits:
    """Draw the reserve, then the training subset from what it leaves, then the test subset.

    With ``reserve_overlap`` the training subset is drawn first and the reserve from within it.

    Raises
    ------
    InputError
        where more is asked for than there is; the message has the counts.

    """
    total = len(train_labels)
    reserve_size = _reserve_size(options, total)
    _check_sizes(options, total, reserve_size)
    everything = torch.arange(total)
    if options.reserve_overlap:
        train = _drawn(everything, train_labels, options.train_size, generator)
        reserve = _drawn(train, train_labels, reserve_size, generator)
    else:
        reserve = _drawn(everything, train_labels, reserve_size, generator)
        rest = torch.ones(total, dtype=torch.bool).index_fill(0, reserve, False)
        train = _drawn(rest.nonzero().flatten(), train_labels, options.train_size, generator)
    if options.test_size is not None and options.test_size > len(test_labels):
        raise InputError(
            f"test_size is {options.test_size}, and the test split has {len(test_labels)} images; "
            "lower it"
        )
    test = _drawn(torch.arange(len(test_labels)), test_labels, options.test_size, generator)
    return Splits(train, reserve, test)


def stratified_positions(labels: Tensor, count: int, generator: Generator) -> Tensor:
    """int64, ascending: ``count`` positions drawn at random, class by class.

    Each class gives its share of all, rounded down or up; where classes are equally large, so
    are their parts (to within one). Where ``count`` is enough for it, no class goes without.

    Raises
    ------
    InputError
        where there are fewer than ``count`` samples.

    """
    _check_available(len(labels), count)
    where = labels.cpu()
    # Equal remainders are decided by chance: the first classes shall not always win.
    sizes = torch.bincount(where)
    lots = torch.rand(len(sizes), generator=generator, device=generator.device).cpu()
    shuffled = torch.randperm(len(where), generator=generator, device=generator.device).cpu()
    ranks = _ranks(where[shuffled])
    chosen = shuffled[ranks < _quotas(sizes, count, lots)[where[shuffled]]]
    return chosen.sort().values.to(labels.device)


def spread_positions(labels: Tensor, count: int) -> Tensor:
    """int64, ascending: ``count`` positions, class by class and evenly spread over each class.

    Involves no chance, so that a data set without a test split always has the same one.
    """
    _check_available(len(labels), count)
    where = labels.cpu()
    sizes = torch.bincount(where)
    quotas = _quotas(sizes, count, torch.zeros(len(sizes)))[where]
    ranks, size = _ranks(where), sizes[where]
    # One more is chosen whenever the running share reaches the next whole number.
    is_chosen = (ranks + 1) * quotas // size > ranks * quotas // size
    return is_chosen.nonzero().flatten().to(labels.device)


def _quotas(sizes: Tensor, count: int, lots: Tensor) -> Tensor:
    """How many each class gives: largest remainders first, ``lots`` (in [0, 1)) between equals."""
    total = int(sizes.sum())
    if total == 0:
        return sizes
    quotas, remainders = sizes * count // total, sizes * count % total
    # Whole numbers all the way, so that equal remainders are equal.
    order = torch.argsort(remainders.double() + lots.double() / 2, descending=True, stable=True)
    quotas[order[: count - int(quotas.sum())]] += 1
    return _with_all_classes(quotas, sizes) if count >= int((sizes > 0).sum()) else quotas


def _with_all_classes(quotas: Tensor, sizes: Tensor) -> Tensor:
    """One for every class that has samples, taken from those that give most."""
    missing = (quotas == 0) & (sizes > 0)
    for label in missing.nonzero().flatten().tolist():
        quotas[quotas.argmax()] -= 1
        quotas[label] = 1
    return quotas


def _ranks(labels: Tensor) -> Tensor:
    """How many samples of its own class come before each."""
    order = torch.argsort(labels, stable=True)
    sizes = torch.bincount(labels)
    starts = sizes.cumsum(0) - sizes
    ranks = torch.empty_like(labels)
    ranks[order] = torch.arange(len(labels)) - starts[labels[order]]
    return ranks


def _drawn(pool: Tensor, labels: Tensor, count: int | None, generator: Generator) -> Tensor:
    if count is None:
        return pool
    return pool[stratified_positions(labels[pool], count, generator)]


def _reserve_size(options: DataOptions, total: int) -> int:
    if options.reserve_size is not None:
        return options.reserve_size
    basis = total if options.train_size is None else options.train_size
    share = Decimal(repr(float(options.reserve_ratio))) * basis
    return int(share.to_integral_value(ROUND_HALF_UP))


def _check_sizes(options: DataOptions, total: int, reserve: int) -> None:
    """The training split must hold what the victim and the defender are to have."""
    train = options.train_size
    if options.reserve_overlap:
        if train is not None and train > total:
            raise InputError(
                f"train_size is {train}, and the training split has {total} images; lower it"
            )
        within = total if train is None else train
        if reserve > within:
            raise InputError(
                f"a reserve of {reserve} images cannot be drawn from {within} training images; "
                "lower reserve_size"
            )
        return
    wanted = max(1, 1 if train is None else train)
    if reserve + wanted > total:
        asked = "at least one image" if train is None else f"train_size {train}"
        raise InputError(
            f"a reserve of {reserve} images beside {asked} is more than the {total} images of the "
            "training split; lower reserve_size (or reserve_ratio) or train_size, or set "
            "reserve_overlap"
        )


def _check_available(available: int, count: int) -> None:
    if not 0 <= count <= available:
        raise InputError(f"{count} samples are wanted and there are {available}; ask for fewer")
