"""Feature collision: images of the target class that a network sees as something else."""

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

__all__ = ["CollisionOptions", "FCConfig", "HiddenTriggerConfig", "backdoorkit_attacks"]

_WITHIN_TARGET = (RateBasis.TARGET_CLASS, RateBasis.ALL_WITHIN_TARGET)


@attrs.frozen(kw_only=True)
class CollisionOptions(SurrogateOptions):
    """How poisons are made to collide, and with whose features; their labels stay."""

    rate_basis: RateBasis = option(
        RateBasis.TARGET_CLASS,
        help="What the rate is a share of; poisons are images of the target class either way.",
    )
    victim: Literal["transfer", "from-scratch"] = option(
        "transfer",
        help="Whose features collide: those of the victim's own network, trained on clean images, "
        "of which then the last layer alone is trained on the poisoned set; or a surrogate's, and "
        "the victim trains from scratch on the poisoned set.",
    )
    head_epochs: int = option(
        100, ge=0, help="Passes over the poisoned set of a transferred network's last layer."
    )
    head_learning_rate: float = option(0.01, gt=0, help="Adam's learning rate in them.")
    steps: int = option(120, ge=0, help="Steps of optimising the poisons.")
    step_size: float = option(
        0.1, gt=0, symbol="λ", help="Step size at first; every poison has its own."
    )
    step_decay: float = option(
        0.5, gt=0, lt=1, help="Factor on a poison's step size after a step that would not help."
    )
    source_class: int | None = option(
        None,
        ge=0,
        help="The only class that is attacked, and collided with. Default: all but the target.",
    )
    beta: float = option(0.1, ge=0, symbol="β", help="Weight of staying close to the base image.")
    scale_beta: bool = option(
        False, help="Multiply beta by the squared ratio of features to pixels, as the paper does."
    )
    radius: float | None = option(
        None,
        ge=0,
        le=255,
        symbol="ε",
        help="Most that any pixel may change, in grey levels of 255. Default: no bound.",
    )

    @property
    def controls_training(self) -> bool:
        """Whether the victim is a transferred network, whose training has two parts."""
        return self.victim == "transfer"

    def __attrs_post_init__(self) -> None:
        if self.rate_basis not in _WITHIN_TARGET or self.label_map is not LabelMapping.ALL_TO_ONE:
            raise ValueError(
                "poisons are images of the target class which keep their label: set label_map "
                "'all-to-one' and rate_basis 'target-class' or 'all-within-target'"
            )
        if self.source_class == self.target:
            raise ValueError(
                f"source_class {self.source_class} is the target; choose another class"
            )
        if self.index_policy is not IndexPolicy.FIXED:
            raise ValueError("poisons are made beforehand: set index_policy 'fixed'")


@attrs.frozen(kw_only=True)
class FCConfig(CollisionOptions):
    """Which test images are attacked, and with which poisons."""

    poison_rate: float = option(
        0.01, ge=0, le=1, symbol="ρ", help="Share of the rate basis that becomes a poison."
    )
    targets: int = option(
        1, ge=1, help="Test images that are attacked; the poisons are shared out among them."
    )
    bases: Literal["nearest", "random"] = option(
        "nearest",
        help="Which images of the target class become poisons: those nearest to the attacked image "
        "in feature space, or any.",
    )
    watermark: float = option(
        0.3,
        ge=0,
        le=1,
        symbol="γ",
        help="Share of the attacked image that is mixed into a poison at first.",
    )


@attrs.frozen(kw_only=True)
class HiddenTriggerConfig(CollisionOptions):
    """Which patch is planted at test time, and never in the training set."""

    poison_rate: float = option(
        0.25, ge=0, le=1, symbol="ρ", help="Share of the rate basis that becomes a poison."
    )
    beta: float = option(0.0, ge=0, symbol="β", help="Weight of staying close to the base image.")
    radius: float | None = option(
        16.0,
        ge=0,
        le=255,
        symbol="ε",
        help="Most that any pixel may change, in grey levels of 255; none is no bound.",
    )
    patch: Literal["noise", "white"] = option("noise", help="Patch: random colours, or white.")
    size: int | None = option(
        None, ge=1, help="Side of the patch in pixels. Default: 30 on images of 224, 4 on 32."
    )
    offset: int = option(
        0, ge=0, help="Pixels between the patch and the lower right edges of the image."
    )


@hookimpl
def backdoorkit_attacks() -> Iterable[MethodInfo]:
    """Feature collision with chosen test images, and with a hidden trigger."""
    yield MethodInfo(
        name="fc",
        summary="Poisons of the target class collide in feature space with chosen test images.",
        reference="Shafahi, Huang, Najibi, Suciu, Studer, Dumitras, Goldstein: Poison Frogs! "
        "Targeted Clean-Label Poisoning Attacks on Neural Networks, NeurIPS 2018, arXiv:1804.00792",
        implementation="backdoorkit_fc._targeted:FeatureCollision",
        config=FCConfig,
        stage=Stage.DATA,
        needs={Need.TRAINING_DATA, Need.TEST_DATA},
        presets={
            "paper": {"beta": 0.25, "scale_beta": True, "victim": "transfer"},
            "poisoning-benchmark": {
                "step_size": 0.001,
                "step_decay": 0.2,
                "radius": 8.0,
                "bases": "random",
                "poison_rate": 0.005,
            },
        },
    )
    yield MethodInfo(
        name="hidden-trigger",
        summary="Poisons of the target class collide in feature space with patched images, so that "
        "no patch is seen in training.",
        reference="Saha, Subramanya, Pirsiavash: Hidden Trigger Backdoor Attacks, AAAI 2020, "
        "arXiv:1910.00033",
        implementation="backdoorkit_fc._hidden:HiddenTrigger",
        config=HiddenTriggerConfig,
        stage=Stage.DATA,
        needs={Need.TRAINING_DATA},
    )
