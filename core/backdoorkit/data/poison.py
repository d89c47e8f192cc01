"""Poisoning a training set: who, with which image, under which label, and the record of it."""

from __future__ import annotations

import enum
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Final

import attrs
import torch
from torch import Generator, Tensor

from backdoorkit.errors import ContractError, InputError
from backdoorkit.hooks.shared_options import LabelMapping, PoisonOptions, RateBasis

if TYPE_CHECKING:
    from backdoorkit.contracts import Trigger
    from backdoorkit.data.images import ImageSet

__all__ = [
    "PoisonedSet",
    "SampleKind",
    "apply_trigger",
    "choose_positions",
    "map_labels",
    "poison_by_options",
    "quantize",
]

#: images that get their trigger at once at 32 x 32; larger ones in smaller chunks of as many pixels
CHUNK: Final = 4096
_POOLS: Final = {
    RateBasis.ALL: "samples",
    RateBasis.ALL_WITHIN_TARGET: "samples of the target class",
    RateBasis.TARGET_CLASS: "samples of the target class",
    RateBasis.NON_TARGET: "samples outside the target class",
}


class SampleKind(enum.IntEnum):
    """What the attacker did to a sample."""

    CLEAN = 0
    #: altered, to be learned as the attacker's label: the ground truth of every detection metric
    POISONED = 1
    #: altered under its true label, so that only the real trigger works; not poison
    COVER = 2


@attrs.frozen(eq=False)
class PoisonedSet:
    """A training set as the victim gets it, and what was done to it."""

    #: images and labels as the victim sees them
    data: ImageSet
    #: int64, N: labels before poisoning
    true_labels: Tensor
    #: uint8, N: :class:`SampleKind` of each sample
    kinds: Tensor

    def __attrs_post_init__(self) -> None:
        for name, dtype in (("true_labels", torch.int64), ("kinds", torch.uint8)):
            value = getattr(self, name)
            if value.dtype != dtype or value.shape != (len(self.data),):
                raise ContractError(
                    f"expected {name} as {dtype} of shape ({len(self.data)},), got {value.dtype} "
                    f"of shape {tuple(value.shape)}"
                )

    @property
    def poisoned_positions(self) -> Tensor:
        """int64, ascending: positions of the poisoned samples; covers are not among them."""
        return (self.kinds == SampleKind.POISONED).nonzero().flatten()


def quantize(images: Tensor) -> Tensor:
    """uint8 images from float images in [0, 1]: clamped, then rounded half up.

    Rounding matters: truncation would darken what was only converted to float and back.
    """
    return images.clamp(0, 1).mul(255).add_(0.5).floor_().to(torch.uint8)


def map_labels(labels: Tensor, options: PoisonOptions, num_classes: int) -> Tensor:
    """int64, N: the label that the attacker wants for each sample of class ``labels``."""
    _check_target(options, num_classes)
    if options.label_map is LabelMapping.ALL_TO_ALL:
        return (labels + 1) % num_classes
    return torch.full_like(labels, options.target)


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
    _check_target(options, num_classes)
    within_target = labels == options.target
    match options.rate_basis:
        case RateBasis.ALL:
            candidates, basis = torch.ones_like(within_target), len(labels)
        case RateBasis.ALL_WITHIN_TARGET:
            candidates, basis = within_target, len(labels)
        case RateBasis.TARGET_CLASS:
            candidates, basis = within_target, int(within_target.sum())
        case RateBasis.NON_TARGET:
            candidates, basis = ~within_target, int((~within_target).sum())
    available = candidates.nonzero().flatten()
    wanted = _count(options.poison_rate, basis)
    _check_count(options, wanted, basis, len(available))
    permutation = torch.randperm(len(available), generator=generator, device=generator.device)
    return available[permutation[:wanted].to(labels.device)].sort().values


@torch.no_grad()
def apply_trigger(
    trigger: Trigger, images: Tensor, labels: Tensor, ids: Tensor, *, chunk: int = CHUNK
) -> Tensor:
    """Triggered copies of uint8 ``images`` (N x C x H x W), quantised again to uint8.

    Always float32: in bfloat16 a warp of a fraction of a pixel would be lost. Images on the CPU
    are taken to where the trigger's tensors are, chunk by chunk, and back.

    Parameters
    ----------
    labels, ids:
        int64, N: true classes and stable ids, for triggers that look at them.
    chunk:
        Images at once at 32 x 32.

    """
    triggered = torch.empty_like(images)
    device = _working_device(trigger, images)
    size = max(1, min(chunk, chunk * 32 * 32 // (images.shape[-2] * images.shape[-1])))
    with torch.autocast(device.type, enabled=False):
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            # Division makes a fresh tensor, so a trigger that writes into it harms nobody.
            pixels = images[part].to(device).float().div_(255)
            made = trigger.apply(pixels, labels[part].to(device), ids[part].to(device))
            _check_triggered(trigger, made, pixels)
            triggered[part] = quantize(made.float())
    return triggered


def poison_by_options(
    data: ImageSet, trigger: Trigger, options: PoisonOptions, generator: Generator
) -> PoisonedSet:
    """Draw samples, give them the trigger and the attacker's label, and record which they are.

    With a clean-label basis (``target-class``, ``all-within-target``) the label that an
    ``all-to-one`` map gives is the one the sample has already. A rate of 0 changes nothing.

    Raises
    ------
    InputError
        as :func:`choose_positions`.

    """
    positions = choose_positions(data.labels, options, data.num_classes, generator)
    kinds = torch.zeros(len(data), dtype=torch.uint8, device=data.device)
    if len(positions) == 0:
        return PoisonedSet(data, data.labels, kinds)
    kinds[positions] = int(SampleKind.POISONED)
    labels = data.labels[positions]
    images = apply_trigger(trigger, data.fetch(positions), labels, data.ids[positions])
    changed = data.replaced(positions, images, map_labels(labels, options, data.num_classes))
    return PoisonedSet(changed, data.labels, kinds)


def _count(rate: float, basis: int) -> int:
    return int((Decimal(repr(float(rate))) * basis).to_integral_value(ROUND_HALF_UP))


def _check_target(options: PoisonOptions, num_classes: int) -> None:
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
        raise InputError(f"{asked} wants {wanted} {pool} and there are {available}; lower the rate")
    if wanted == 0:
        raise InputError(
            f"{asked} is none of {basis} {pool}; raise the rate, or set it to 0 to poison nothing"
        )


def _check_triggered(trigger: Trigger, made: Tensor, given: Tensor) -> None:
    name = type(trigger).__name__
    if made.shape != given.shape or not made.is_floating_point():
        raise ContractError(
            f"expected {name}.apply to give float images of shape {tuple(given.shape)}, got "
            f"{made.dtype} of shape {tuple(made.shape)}"
        )
    if not bool(torch.isfinite(made).all()):
        raise ContractError(f"{name}.apply gave pixels that are not finite")


def _working_device(trigger: Trigger, images: Tensor) -> torch.device:
    """Where the trigger is applied: at the images, or where its own tensors wait for them."""
    if images.device.type != "cpu":
        return images.device
    devices = (value.device for value in trigger.state().values())
    return next(devices, images.device)
