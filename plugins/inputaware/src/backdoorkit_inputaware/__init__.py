"""Input-aware dynamic attack: a generator, learned with the victim, makes each image's trigger."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs

from backdoorkit import IndexPolicy, MethodInfo, Need, PoisonOptions, Stage, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["InputAwareConfig", "backdoorkit_attacks"]


@attrs.frozen(kw_only=True)
class InputAwareConfig(PoisonOptions):
    """How many images are poisoned and crossed, and how the two generators are trained."""

    own_covers: ClassVar[bool] = True

    index_policy: IndexPolicy = option(
        IndexPolicy.PER_BATCH,
        help="Always per-batch: the pattern generator learns with the victim. For a fixed set, run "
        "a defense or metric that wants one; it is frozen after the training.",
    )
    cover_ratio: float = option(
        1.0,
        ge=0,
        help="Cross images for each poisoned one: they bear the trigger of another image, under "
        "their true label. 0 lets the trigger become one for all.",
    )
    mask_density: float = option(
        0.032, ge=0, le=1, help="Value that a mask's pixels may have without a penalty."
    )
    mask_norm: float = option(
        100.0, ge=0, symbol="λ_norm", help="Weight of what masks have above mask_density."
    )
    mask_diversity: float = option(
        4.0,
        ge=0,
        help="Weight of the masks' diversity. Images are compared as they are, in [0, 1]; the "
        "authors divide them by their deviation, 0.25, and have 1.",
    )
    mask_epochs: int = option(25, ge=0, help="Passes of the mask generator over the data.")
    mask_batch_size: int = option(128, ge=2, help="Images in each of its steps, twice.")
    mask_learning_rate: float = option(0.01, gt=0, help="Adam's learning rate in them.")
    mask_milestones: tuple[float, ...] = option(
        (0.4, 0.8), ge=0, le=1, help="Where it is divided by ten, as shares of mask_epochs."
    )
    diversity: float = option(
        1.0,
        ge=0,
        symbol="λ_div",
        help="Weight of the patterns' diversity beside the victim's loss.",
    )
    pattern_learning_rate: float = option(
        0.01, gt=0, help="Adam's learning rate of the pattern generator."
    )
    pattern_milestones: tuple[float, ...] = option(
        (0.35, 0.52, 0.7, 0.87),
        ge=0,
        le=1,
        help="Where it is divided by ten, as shares of the victim's epochs.",
    )
    accumulate_gradients: bool = option(
        False,
        help="Never clear the pattern generator's gradients, as the released code forgets to.",
    )
    width: int = option(32, ge=1, help="Channels of the generators' first stage.")
    depth: int = option(3, ge=1, help="Stages of the generators; each halves the image.")
    donors: int = option(
        128, ge=2, help="Training images kept with the trigger, whose triggers crosses bear."
    )

    def __attrs_post_init__(self) -> None:
        if self.index_policy is not IndexPolicy.PER_BATCH:
            raise ValueError(
                "the trigger is learned in the victim's training, so index_policy is 'per-batch'; "
                "a fixed set is frozen afterwards, for defenses that work on data"
            )


@hookimpl
def backdoorkit_attacks() -> Iterable[MethodInfo]:
    """The input-aware dynamic attack."""
    paper = {
        "poison_rate": 0.1,
        "cover_ratio": 1.0,
        "mask_density": 0.032,
        "mask_norm": 100.0,
        "mask_epochs": 25,
        "diversity": 1.0,
    }
    yield MethodInfo(
        name="inputaware",
        summary="A generator that is trained with the victim makes a trigger for every image, "
        "which works on that image alone.",
        reference="Nguyen, Tran: Input-Aware Dynamic Backdoor Attack, NeurIPS 2020, "
        "arXiv:2010.08138",
        implementation="backdoorkit_inputaware._attack:InputAware",
        config=InputAwareConfig,
        stage=Stage.TRAINING,
        needs={Need.TRAINING_DATA, Need.TRAINING_CONTROL},
        presets={
            "paper": paper,
            # Smaller generators, and images with a deviation of 0.5 after the authors' scaling.
            "mnist": {**paper, "width": 16, "depth": 2, "mask_diversity": 2.0},
            "released-code": {**paper, "accumulate_gradients": True},
        },
    )
