"""Options of attacks that need a clean classifier of their own."""

from __future__ import annotations

import attrs

from backdoorkit.hooks.options import option
from backdoorkit.hooks.shared_options import PoisonOptions

__all__ = ["SurrogateOptions"]


@attrs.frozen(kw_only=True)
class SurrogateOptions(PoisonOptions):
    """Base of configurations whose attack looks into a surrogate: a classifier that the attacker
    trains on clean images beforehand. ``backdoorkit.api.train_surrogate`` reads them.
    """

    surrogate: str = option(
        "small-cnn", help="Architecture of the surrogate, by name, with its default options."
    )
    surrogate_epochs: int = option(20, ge=0, help="Passes of the surrogate over the clean images.")
    surrogate_batch_size: int = option(128, ge=1, help="Images per step of the surrogate.")
    surrogate_learning_rate: float = option(
        0.1, ge=0, help="Peak learning rate of the surrogate; it rises for a quarter, then falls."
    )
    surrogate_crop_padding: int = option(
        0,
        ge=0,
        help="Random crop of the surrogate's images after zero padding by this many pixels.",
    )
    surrogate_horizontal_flip: bool = option(
        False, help="Mirror half of the surrogate's images, chosen at random."
    )
