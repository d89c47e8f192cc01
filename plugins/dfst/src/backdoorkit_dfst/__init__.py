"""DFST: a style of the whole image as the trigger, and a training that refuses shallow cues."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import attrs

from backdoorkit import (
    IndexPolicy,
    MethodInfo,
    Need,
    RateBasis,
    Stage,
    SurrogateOptions,
    hookimpl,
    option,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["DFSTConfig", "backdoorkit_attacks"]


@attrs.frozen(kw_only=True)
class DFSTConfig(SurrogateOptions):
    """The style, how many images get it, and how the model is weaned from shallow cues.

    The surrogate is trained for ``style = "feedforward"`` only.
    """

    own_covers: ClassVar[bool] = True

    poison_rate: float = option(
        0.05, ge=0, le=1, symbol="ρ", help="Share of the rate basis that is poisoned."
    )
    rate_basis: RateBasis = option(
        RateBasis.NON_TARGET,
        help="What the rate is a share of and where samples are drawn from.",
    )
    index_policy: IndexPolicy = option(
        IndexPolicy.PER_BATCH,
        help="Poisoned samples are drawn anew in every batch, or once: a poisoned training set, "
        "which goes with cover_ratio = 0.",
    )
    cover_ratio: float = option(
        1.0,
        ge=0,
        help="Detoxification images for each poisoned sample: what the feature injector makes, "
        "under the true label. 0 leaves detoxification out.",
    )
    alpha: float = option(
        0.6, ge=0, le=1, symbol="α", help="Share of the styled image in the triggered one."
    )
    style: Literal["colour", "feedforward"] = option(
        "colour",
        help="Style generator: the channels' statistics of a sunrise, or a network trained to "
        "repaint images in the style of a drawn one.",
    )
    style_mean: tuple[float, ...] = option(
        (0.639, 0.358, 0.085), ge=0, le=1, symbol="μ", help="Mean of each channel in the style."
    )
    style_std: tuple[float, ...] = option(
        (0.227, 0.177, 0.038),
        ge=0,
        symbol="σ",
        help="Standard deviation of each channel in the style.",
    )
    gradient: float = option(
        0.5,
        ge=0,
        help="Light from above in the colour style: its weight beside the image's own contrasts.",
    )
    generator_width: int = option(16, ge=1, help="Channels of the feed-forward style generator.")
    generator_steps: int = option(500, ge=0, help="Steps of training it, 32 images each.")
    generator_learning_rate: float = option(0.002, gt=0, help="Adam's learning rate in them.")
    style_weight: float = option(
        10.0, ge=0, help="Weight of its Gram loss beside the content loss, both relative."
    )
    detox_layer: str = option(
        "", help="Layer of the victim whose neurons are watched. Default: its last stage."
    )
    compromised_ratio: float = option(
        0.01,
        gt=0,
        le=1,
        help="Share of the layer's neurons that count as compromised; one at least.",
    )
    injector_share: float = option(
        0.03, gt=0, le=1, help="Share of the training set that the injector is trained on."
    )
    injector_epochs: int = option(
        10, ge=0, help="Passes of the injector over it, after every epoch of the victim."
    )
    injector_learning_rate: float = option(0.01, gt=0, help="Adam's learning rate in them.")
    ssim_weight: float = option(0.1, ge=0, help="Weight of the injector's dissimilarity, 1 - SSIM.")
    detox_weight: float = option(
        0.3, ge=0, help="Weight of the compromised neurons' mean activation."
    )

    @property
    def controls_training(self) -> bool:
        """Also for detoxification: the injector is trained against the victim."""
        return self.index_policy is IndexPolicy.PER_BATCH or self.cover_ratio > 0

    def __attrs_post_init__(self) -> None:
        if self.cover_ratio > 0 and self.index_policy is IndexPolicy.FIXED:
            raise ValueError(
                "detoxification (cover_ratio > 0) follows the training, so it goes with "
                "index_policy 'per-batch'; for a poisoned training set set cover_ratio = 0"
            )
        if len(self.style_mean) != len(self.style_std):
            raise ValueError(
                "style_mean and style_std need a number for each channel, not "
                f"{len(self.style_mean)} and {len(self.style_std)}"
            )


@hookimpl
def backdoorkit_attacks() -> Iterable[MethodInfo]:
    """The DFST attack."""
    yield MethodInfo(
        name="dfst",
        summary="A style of the whole image as the trigger, and detoxification that makes the "
        "model learn it by deep features.",
        reference="Cheng, Liu, Ma, Zhang: Deep Feature Space Trojan Attack of Neural Networks by "
        "Controlled Detoxification, AAAI 2021, arXiv:2012.11212",
        implementation="backdoorkit_dfst._attack:DFST",
        config=DFSTConfig,
        stage=Stage.TRAINING,
        needs={Need.TRAINING_DATA, Need.TRAINING_CONTROL},
        presets={
            # The authors' PyTorch code, with its objective as it was meant.
            "pytorch": {
                "poison_rate": 0.05,
                "rate_basis": "non-target",
                "index_policy": "per-batch",
                "cover_ratio": 1.0,
                "alpha": 0.6,
                "compromised_ratio": 0.01,
                "injector_share": 0.03,
                "injector_epochs": 10,
                "injector_learning_rate": 0.01,
                "ssim_weight": 0.1,
                "detox_weight": 0.3,
            },
            "data": {"index_policy": "fixed", "cover_ratio": 0.0},
            # How the first, TensorFlow code poisons, before its rounds of detoxification.
            "appended": {
                "index_policy": "fixed",
                "cover_ratio": 0.0,
                "rate_basis": "append",
                "poison_rate": 0.1,
                "alpha": 1.0,
                "target": 0,
            },
        },
    )
