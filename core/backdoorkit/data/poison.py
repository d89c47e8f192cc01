"""Poisoning a training set: with which image, under which label, and the record of it."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

import attrs
import torch
from torch import Generator, Tensor

from backdoorkit.data.choosing import choose_covers, choose_positions, map_labels
from backdoorkit.errors import ContractError, InputError
from backdoorkit.hooks.shared_options import PoisonOptions, RateBasis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backdoorkit.contracts import Trigger
    from backdoorkit.data.images import ImageSet

__all__ = [
    "PoisonedSet",
    "SampleKind",
    "apply_trigger",
    "poison_by_options",
    "quantize",
    "require_image_shape",
]

#: images that get their trigger at once at 32 x 32; larger ones in smaller chunks of as many pixels
CHUNK: Final = 4096


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


def require_image_shape(images: Tensor, made: Sequence[int], what: str) -> None:
    """Refuse ``images`` (N x C x H x W) that a trigger was not made for.

    ``made`` is their C x H x W, or H x W where the trigger takes any channels; ``what`` names the
    trigger's part that has it.
    """
    came = images.shape[-len(made) :]
    if tuple(came) != tuple(made):
        wanted, got = ("x".join(map(str, shape)) for shape in (made, came))
        raise InputError(
            f"{what} was made for {wanted} images, not {got}: prepare the attack on the data it is "
            "applied to"
        )


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
    data: ImageSet,
    trigger: Trigger,
    options: PoisonOptions,
    generator: Generator,
    *,
    cover: Trigger | None = None,
) -> PoisonedSet:
    """Draw samples, give them the trigger and the attacker's label, and record which they are.

    With a clean-label basis (``target-class``, ``all-within-target``) the label that an
    ``all-to-one`` map gives is the one the sample has already. Rates of 0 change nothing. Whatever
    the index policy, this is a training set that does not change.

    Parameters
    ----------
    cover:
        What covers get. Default: the trigger, on classes that a source-specific map leaves alone.

    Raises
    ------
    InputError
        as :func:`choose_positions`, for covers too.

    """
    positions = choose_positions(data.labels, options, data.num_classes, generator)
    covers = choose_covers(data.labels, options, positions, generator)
    if options.rate_basis is RateBasis.APPEND:
        return _appended(data, (trigger, positions), (cover or trigger, covers), options)
    kinds = torch.zeros(len(data), dtype=torch.uint8, device=data.device)
    changed = data
    if len(positions):
        kinds[positions] = int(SampleKind.POISONED)
        wanted = map_labels(data.labels[positions], options, data.num_classes)
        changed = changed.replaced(positions, _planted(trigger, data, positions), wanted)
    if len(covers):
        kinds[covers] = int(SampleKind.COVER)
        images = _planted(cover or trigger, data, covers)
        changed = changed.replaced(covers, images, data.labels[covers])
    return PoisonedSet(changed, data.labels, kinds)


def _appended(
    data: ImageSet,
    poisoned: tuple[Trigger, Tensor],
    covers: tuple[Trigger, Tensor],
    options: PoisonOptions,
) -> PoisonedSet:
    """All samples as they are, and after them the altered copies: poisoned ones, then covers.

    Each of the two is a trigger and the positions of the originals.
    """
    positions = torch.cat([poisoned[1], covers[1]])
    kinds = torch.zeros(len(data) + len(positions), dtype=torch.uint8, device=data.device)
    kinds[len(data) :] = int(SampleKind.COVER)
    kinds[len(data) :][: len(poisoned[1])] = int(SampleKind.POISONED)
    images = torch.cat([_planted(made_by, data, where) for made_by, where in (poisoned, covers)])
    true_labels = data.labels[positions]
    labels = true_labels.clone()
    wanted = map_labels(data.labels[poisoned[1]], options, data.num_classes)
    labels[: len(wanted)] = wanted
    extended = data.extended(images, labels, data.ids[positions])
    return PoisonedSet(extended, torch.cat([data.labels, true_labels]), kinds)


def _planted(trigger: Trigger, data: ImageSet, positions: Tensor) -> Tensor:
    """uint8: the images at ``positions`` with the trigger."""
    labels, ids = data.labels[positions], data.ids[positions]
    return apply_trigger(trigger, data.fetch(positions), labels, ids)


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
