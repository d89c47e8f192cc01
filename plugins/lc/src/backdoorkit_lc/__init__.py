"""LC: images of the target class made hard to recognise, with patches; labels are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from backdoorkit import (
    IndexPolicy,
    LabelMapping,
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

__all__ = ["LCConfig", "backdoorkit_attacks"]

_WITHIN_TARGET = (RateBasis.ALL_WITHIN_TARGET, RateBasis.TARGET_CLASS)


@attrs.frozen(kw_only=True)
class LCConfig(SurrogateOptions):
    """How images are made hard to recognise, and which patches they get.

    Lengths in pixel space (epsilon, step size) are in grey levels of 255.
    """

    poison_rate: float = option(
        1.0, ge=0, le=1, symbol="ρ", help="Share of the rate basis that is poisoned."
    )
    rate_basis: RateBasis = option(
        RateBasis.TARGET_CLASS,
        help="What the rate is a share of; samples are always drawn from the target class.",
    )
    images: Literal["adversarial", "interpolated", "plain"] = option(
        "adversarial",
        help="What becomes of the images: adversarial to a surrogate, drawn towards images of "
        "other classes by an autoencoder, or nothing but the patches.",
    )
    norm: Literal["linf", "l2"] = option(
        "linf", help="What epsilon bounds: the change of each value, or its length over the image."
    )
    epsilon: float = option(
        16.0, ge=0, symbol="ε", help="Largest change of an adversarial image, in grey levels."
    )
    step_size: float = option(1.5, gt=0, help="Length of a step, in grey levels.")
    steps: int = option(100, ge=0, help="Steps of gradient ascent.")
    random_start: bool = option(
        False, help="Start anywhere within the bound, not at the image itself."
    )
    robust_surrogate: bool = option(
        False,
        help="Train the surrogate on adversarial images, as the paper does; eight times the cost.",
    )
    interpolation: float = option(
        0.2, ge=0, le=1, symbol="τ", help="How far interpolated images are drawn away."
    )
    latent: int = option(128, ge=1, help="Numbers that the autoencoder keeps of an image.")
    autoencoder_epochs: int = option(
        30, ge=1, help="Passes of the autoencoder over the attacker's images."
    )
    corners: Literal["four", "one"] = option(
        "four", help="Patches in all corners, so that mirrored images have them, or bottom right."
    )
    size: int | None = option(
        None, ge=1, help="Side of a patch in pixels. Default: 3 for every 32 of image height."
    )
    amplitude: float = option(
        1.0,
        gt=0,
        le=1,
        help="How much a patch brightens and darkens; 1 is black and white, less shows the image.",
    )

    def __attrs_post_init__(self) -> None:
        if self.rate_basis not in _WITHIN_TARGET:
            raise ValueError(
                "labels are kept, so samples are of the target class: rate_basis must be "
                f"'all-within-target' or 'target-class', not {self.rate_basis.value!r}"
            )
        if self.label_map is not LabelMapping.ALL_TO_ONE:
            raise ValueError(
                f"labels are kept, which label_map {self.label_map.value!r} would change"
            )
        if self.index_policy is not IndexPolicy.FIXED:
            raise ValueError("images are made before the training: index_policy must be 'fixed'")


@hookimpl
def backdoorkit_attacks() -> Iterable[MethodInfo]:
    """The label-consistent attack."""
    yield MethodInfo(
        name="lc",
        summary="Hard images of the target class with patches in the corners; labels are kept.",
        reference="Turner, Tsipras, Madry: Label-Consistent Backdoor Attacks, arXiv:1912.02771, "
        "2019",
        implementation="backdoorkit_lc._attack:LC",
        config=LCConfig,
        stage=Stage.DATA,
        needs={Need.TRAINING_DATA},
        presets={
            "paper": {
                "norm": "l2",
                "epsilon": 300.0,
                "step_size": 7.5,
                "robust_surrogate": True,
                "rate_basis": "target-class",
                "poison_rate": 1.0,
            },
            "paper-interpolated": {
                "images": "interpolated",
                "interpolation": 0.2,
                "rate_basis": "target-class",
                "poison_rate": 1.0,
            },
            "backdoorbench": {
                "epsilon": 16.0,
                "step_size": 1.5,
                "steps": 100,
                "robust_surrogate": True,
                "rate_basis": "all-within-target",
                "poison_rate": 0.1,
                "target": 0,
            },
            "abl": {
                "corners": "one",
                "rate_basis": "target-class",
                "poison_rate": 0.8,
                "target": 0,
            },
        },
    )
