"""The SIG attack (Barni, Kallas, Tondi, arXiv:1902.11237)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import attrs
import torch

from backdoorkit.api import Attack, InputError, Trigger
from backdoorkit_sig import SIGConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from backdoorkit.api import Context, ImageSet

__all__ = ["SIG", "SinusoidTrigger", "sinusoid"]

#: share of the wrapped signal in the released ABL and NAD code
_WRAPPED_SHARE: Final = 0.2


def sinusoid(width: int, delta: float, frequency: float) -> Tensor:
    """v(j) = Δ sin(2π f j / W) in grey levels: float64, W. Columns j count from 0."""
    phase = 2 * math.pi * frequency / width * torch.arange(width, dtype=torch.float64)
    return delta * torch.sin(phase)


@attrs.frozen(eq=False)
class SinusoidTrigger(Trigger):
    """T(x) = clip(c x + v): the signal is the same in every row and channel.

    ``signal`` (v) is float32, 1 x 1 x 1 x W, in units of the images; the ``carrier`` share c is 1
    unless the signal is mixed in.
    """

    signal: Tensor
    carrier: float = 1.0

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Triggered copies of ``images`` (N x C x H x W)."""
        del labels, indices
        if images.shape[-1] != self.signal.shape[-1]:
            raise InputError(
                f"the signal was made for images {self.signal.shape[-1]} pixels wide, not "
                f"{images.shape[-1]}: prepare the attack on the data it is applied to"
            )
        return (self.carrier * images).add_(self.signal.to(images.device)).clamp_(0, 1)

    def state(self) -> dict[str, Tensor]:
        """``signal`` and ``carrier``."""
        carrier = torch.tensor(self.carrier, dtype=torch.float64)
        return {"signal": self.signal, "carrier": carrier}


class SIG(Attack[SIGConfig]):
    """A vertical sinusoid that the model takes for a mark of the target class.

    Labels stay as they are: with the default basis only images of the target class are altered,
    and the label map gives them the label they have.
    """

    def prepare(self, data: ImageSet, context: Context) -> SinusoidTrigger:
        """The signal as it is at test time; draws nothing at random."""
        config = self.config
        delta = config.delta if config.test_delta is None else config.test_delta
        return self._trigger(data.shape[-1], delta, context.device)

    def restore(self, state: Mapping[str, Tensor]) -> SinusoidTrigger:
        """The trigger from its stored tensors."""
        return SinusoidTrigger(state["signal"], state["carrier"].item())

    def for_training(self, trigger: Trigger) -> SinusoidTrigger:
        """With the amplitude for training."""
        assert isinstance(trigger, SinusoidTrigger)
        signal = trigger.signal
        return self._trigger(signal.shape[-1], self.config.delta, signal.device)

    def _trigger(self, width: int, delta: float, device: torch.device) -> SinusoidTrigger:
        signal, carrier = sinusoid(width, delta, self.config.frequency), 1.0
        if self.config.wrapped_blend:
            signal = _WRAPPED_SHARE * signal.trunc().remainder(256)
            carrier -= _WRAPPED_SHARE
        signal = (signal / 255).float().reshape(1, 1, 1, width)
        return SinusoidTrigger(signal.to(device), carrier)
