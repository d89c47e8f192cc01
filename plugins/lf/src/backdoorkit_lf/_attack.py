"""The low-frequency attack (Zeng, Park, Mao, Jia, ICCV 2021, arXiv:2104.03413)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import torch

from backdoorkit import SurrogateOptions
from backdoorkit.api import Attack, InputError, Trigger, require_image_shape, train_surrogate
from backdoorkit_lf import LFConfig
from backdoorkit_lf._file import read_pattern
from backdoorkit_lf._optimisation import measure, optimise, perturb
from backdoorkit_lf._smoothing import Smoothing, dome, scaled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from backdoorkit.api import Context, ImageSet

__all__ = ["LF", "SmoothTrigger"]

#: share of the dome in each channel, by the number of channels; the red, green and blue ones are
#: those of BackdoorBench's pattern for PreAct-ResNet-18 on CIFAR-10
_COLOURS: Final[Mapping[int, tuple[float, ...]]] = {1: (1.0,), 3: (0.353, 0.0, 1.0)}


@attrs.frozen(eq=False)
class SmoothTrigger(Trigger):
    """T(x) = clip(x + v) with one smooth ``pattern`` (v): float32, 1 x C x H x W, for all."""

    pattern: Tensor

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Triggered copies of ``images`` (N x C x H x W)."""
        del labels, indices
        require_image_shape(images, self.pattern.shape[1:], "the pattern")
        return (images + self.pattern.to(images.device)).clamp_(0, 1)

    def state(self) -> dict[str, Tensor]:
        """``pattern``."""
        return {"pattern": self.pattern}


class LF(Attack[LFConfig]):
    """One smooth pattern that only brightens, added to every poisoned image.

    Triggers of other attacks stand out in the frequency spectrum; this one lies where the energy
    of photographs is. It needs no model: smoothing again and again, as the paper's search does,
    leads to the same dome from any start. The search itself is offered, too.
    """

    def prepare(self, data: ImageSet, context: Context) -> SmoothTrigger:
        """Make or read the pattern for the images' shape."""
        config = self.config
        if config.pattern in ("optimised", "deepfool"):
            return self._searched(data, context)
        if config.pattern_file is not None:
            pattern = read_pattern(config.pattern_file, data.shape)
        else:
            pattern = self._dome(data.shape)
        return SmoothTrigger(pattern[None].to(context.device))

    def restore(self, state: Mapping[str, Tensor]) -> SmoothTrigger:
        """The trigger from its stored ``pattern``."""
        return SmoothTrigger(state["pattern"])

    def _dome(self, shape: tuple[int, int, int]) -> Tensor:
        """The dome in the configured colour: float32, C x H x W."""
        channels, height, width = shape
        colour = self.config.colour or _COLOURS.get(channels, ())
        if len(colour) != channels:
            raise InputError(
                f"the images have {channels} channels: set colour to as many shares of the dome"
                + (f", not {len(colour)}" if colour else "")
            )
        weights = torch.tensor(colour, dtype=torch.float64)[:, None, None]
        shaped = weights * dome(Smoothing.of_size(height, width))
        return scaled(shaped, self.config.amplitude / 255).float()

    def _searched(self, data: ImageSet, context: Context) -> SmoothTrigger:
        """A pattern that leads a surrogate, trained on ``data``, to the target class."""
        config = self.config
        if config.target >= data.num_classes:
            raise InputError(
                f"target {config.target} is not a class of this data set; it has "
                f"{data.num_classes} classes, 0 to {data.num_classes - 1}"
            )
        decided_by = {name: getattr(config, name) for name in _search_options()}
        made = context.asset("pattern", decided_by, lambda: self._found(data, context))
        pattern = made.pop("pattern")
        context.note(**{name: value.item() for name, value in made.items()})
        return SmoothTrigger(pattern)

    def _found(self, data: ImageSet, context: Context) -> dict[str, Tensor]:
        """The pattern, and beside it what it does to the surrogate."""
        config = self.config
        target, largest = config.target, config.amplitude / 255
        surrogate = train_surrogate(data, context, config)
        if config.pattern == "optimised":
            pattern = optimise(
                surrogate,
                data,
                target=target,
                largest=largest,
                steps=config.steps,
                context=context,
            )
        else:
            pattern = perturb(surrogate, data, target=target, largest=largest, context=context)
        fooling = attrs.asdict(measure(surrogate, data, pattern, target))
        numbers = {
            name: torch.tensor(value, dtype=torch.float64) for name, value in fooling.items()
        }
        return {"pattern": pattern[None], **numbers}


def _search_options() -> tuple[str, ...]:
    """The options that decide what a search finds."""
    surrogate = (field.name for field in attrs.fields(SurrogateOptions))
    own = ("pattern", "target", "amplitude", "steps")
    return (*own, *(name for name in surrogate if name.startswith("surrogate")))
