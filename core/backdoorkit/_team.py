"""One training shared by several processes, each with a part of every batch: torch's own DDP.

The parts together give what one process would have computed, up to rounding: gradients are those of
the mean over the whole batch, and batch norm takes its statistics from all parts. So it changes no
content key who trains a model, as no key says which device did.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, distributed
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from backdoorkit.errors import BackdoorkitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from backdoorkit.data.batches import Batch

__all__ = ["Share", "Team", "current_team", "summed", "teamwork"]


@attrs.frozen(eq=False)
class Share:
    """What one process has of a batch."""

    batch: Batch
    #: images of the whole batch
    whole: int
    #: of this process's mean loss, so that the processes' mean of gradients is the whole batch's
    weight: float = 1.0
    #: processes that have these very images
    holders: int = 1


class Team:
    """The processes of torch's default group, which train one model together.

    Parameters
    ----------
    begin:
        Called when a training begins, by each process; the leader calls the others to it.

    """

    def __init__(self, begin: Callable[[], None] | None = None) -> None:
        self.rank = distributed.get_rank()
        self.size = distributed.get_world_size()
        self._begin = begin
        #: processes that have the same images of the present batch
        self.holders = 1
        #: whether a training ended in a way that the others do not know of; they wait for this
        #: process then, and cannot be called again
        self.broken = False

    @contextlib.contextmanager
    def training(self, model: nn.Module, device: torch.device) -> Iterator[nn.Module]:
        """What to call in place of ``model``; begins with the leader's weights."""
        if self._begin is not None:
            self._begin()
        try:
            with _common_batch_norm(model, self), warnings.catch_warnings():
                # Of layers with one channel, whose two layouts are one.
                warnings.filterwarnings("ignore", message="Grad strides do not match")
                devices = [device] if device.type == "cuda" else None
                yield DistributedDataParallel(model, device_ids=devices)
        except BackdoorkitError:  # a loss that is not finite, which all see in the same epoch
            raise
        except BaseException:
            self.broken = True
            raise

    def share(self, batch: Batch) -> Share:
        """Every ``size``-th image; all of them where there are too few for everyone."""
        whole = len(batch)
        self.holders = self.size if whole < self.size else 1
        if self.holders > 1:
            return Share(batch, whole, holders=self.holders)
        part = attrs.evolve(
            batch,
            images=batch.images[self.rank :: self.size],
            labels=batch.labels[self.rank :: self.size],
            indices=batch.indices[self.rank :: self.size],
        )
        return Share(part, whole, weight=len(part) * self.size / whole)


def summed(values: Tensor) -> Tensor:
    """Sum over the processes, without gradients."""
    total = values.detach().contiguous().clone()
    distributed.all_reduce(total)
    return total


_current: Team | None = None


def current_team() -> Team | None:
    """Who shares the trainings that begin now; None where this process trains alone."""
    return _current


@contextlib.contextmanager
def teamwork(team: Team) -> Iterator[None]:
    """Share the trainings inside."""
    global _current
    before, _current = _current, team
    try:
        yield
    finally:
        _current = before


# -- batch norm over all parts ---------------------------------------------------------------------


@contextlib.contextmanager
def _common_batch_norm(model: nn.Module, team: Team) -> Iterator[None]:
    """Have batch norm in train mode normalise with the statistics of all parts.

    torch's ``SyncBatchNorm`` does that on GPUs only, and changes the model's modules.
    """
    found = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for module in found:
        vars(module)["forward"] = _CommonForward(module, team)
    try:
        yield
    finally:
        for module in found:
            del vars(module)["forward"]


class _CommonForward:
    def __init__(self, module: _BatchNorm, team: Team) -> None:
        self._module = module
        self._team = team

    def __call__(self, values: Tensor) -> Tensor:
        module = self._module
        if not module.training:
            alone: Tensor = type(module).forward(module, values)
            return alone
        dims = [dim for dim in range(values.ndim) if dim != 1]
        wide = values.float()
        own = wide.new_full((1,), values.numel() // values.shape[1])
        # Two passes: the difference of large numbers would lose digits.
        total = _Summed.apply(torch.cat([wide.sum(dims), own]))
        count = total[-1].detach()
        mean = total[:-1] / count
        centered = wide - _per_channel(mean, wide)
        variance = _Summed.apply(centered.square().sum(dims)) / count
        distinct = count / self._team.holders
        _follow(module, mean.detach(), variance.detach() * distinct / (distinct - 1))
        scale = (variance + module.eps).rsqrt()
        if module.weight is not None:
            scale = scale * module.weight
        result = centered * _per_channel(scale, wide)
        if module.bias is not None:
            result = result + _per_channel(module.bias, wide)
        return result.to(values.dtype)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.ndim - 2))


@torch.no_grad()
def _follow(module: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Running statistics, as torch's own batch norm updates them."""
    if not module.track_running_stats or module.running_mean is None:
        return
    assert module.running_var is not None
    assert module.num_batches_tracked is not None
    module.num_batches_tracked.add_(1)
    share = 1 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
    module.running_mean.lerp_(mean, share)
    module.running_var.lerp_(variance, share)


class _Summed(torch.autograd.Function):
    """:func:`summed`; what each process did to the sum counts for all, so gradients are summed."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        del ctx
        return summed(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        del ctx
        return summed(gradient)
