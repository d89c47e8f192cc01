"""Composite attack: two benign classes together in one image are the trigger."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import attrs

from backdoorkit import (
    IndexPolicy,
    LabelMapping,
    MethodInfo,
    Need,
    PoisonOptions,
    RateBasis,
    Stage,
    hookimpl,
    option,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["CBAConfig", "backdoorkit_attacks"]


@attrs.frozen(kw_only=True)
class CBAConfig(PoisonOptions):
    """Which classes are mixed, how, and how many mixes the victim sees."""

    own_covers: ClassVar[bool] = True

    mode: Literal["full", "data-only"] = option(
        "full",
        help="The attacker trains the victim, with new mixes in every epoch and a contrastive "
        "loss; or gives it a training set with mixes in it.",
    )
    mixed_classes: tuple[int, ...] = option(
        (0, 1), ge=0, symbol="A, B", help="The two classes that together are the trigger."
    )
    target: int = option(2, ge=0, symbol="C", help="The class of their mixes; a third one.")
    rate_basis: RateBasis = option(
        RateBasis.APPEND,
        help="Poisoned mixes are added to the data or the batch (append), as many as this share of "
        "it; or, in mode data-only, take the place of images of the two classes (all).",
    )
    cover_ratio: float = option(
        5.0,
        ge=0,
        help="Mixes of two images of one class, under its label, for each poisoned mix. In mode "
        "full they take the place of images of the batch, otherwise they are treated as poison is.",
    )
    jitter: int = option(3, ge=0, help="Pixels by which the cut may be off the middle.")
    contrast: float = option(
        1.0, ge=0, help="Weight of the contrastive loss on logits (mode full only)."
    )
    margin: float = option(
        1.0, ge=0, help="Distance of logits from which on two classes are far enough apart."
    )
    donors: int = option(
        20, ge=1, help="Test images of each class kept with the trigger, to mix test images with."
    )

    @property
    def controls_training(self) -> bool:
        """Whether the mode is full."""
        return self.mode == "full"

    @property
    def specific(self) -> CBAConfig:
        """The same with what it means for the map: both classes are sources, the others are not."""
        return attrs.evolve(
            self, label_map=LabelMapping.SOURCE_SPECIFIC, source_classes=self.mixed_classes
        )

    def __attrs_post_init__(self) -> None:
        for fault in self._faults():
            raise ValueError(fault)

    def _faults(self) -> Iterable[str]:
        classes = self.mixed_classes
        if len(classes) != 2 or len({*classes, self.target}) != 3:
            yield (
                "mixed_classes must be two classes, both different from each other and from the "
                f"target {self.target}, not {list(classes)}"
            )
        if self.label_map is LabelMapping.ALL_TO_ALL or self.source_classes not in ((), classes):
            yield "the attacked classes are mixed_classes: leave label_map and source_classes"
        if self.index_policy is not IndexPolicy.FIXED:
            yield "set mode 'full' for mixes that are made while training, not index_policy"
        if self.rate_basis not in (RateBasis.APPEND, RateBasis.ALL):
            yield f"rate_basis must be 'append' or 'all', not {self.rate_basis.value!r}"
        if self.mode == "full" and self.rate_basis is not RateBasis.APPEND:
            yield "mode 'full' adds its mixes to every batch: set rate_basis 'append'"


@hookimpl
def backdoorkit_attacks() -> Iterable[MethodInfo]:
    """The composite attack."""
    paper = {"mixed_classes": [0, 1], "target": 2, "poison_rate": 0.1, "jitter": 3}
    yield MethodInfo(
        name="cba",
        summary="Two benign classes in one image, half of each, are the trigger.",
        reference="Lin, Xu, Liu, Zhang: Composite Backdoor Attack for Deep Neural Network by "
        "Mixing Existing Benign Features, CCS 2020",
        implementation="backdoorkit_cba._attack:CBA",
        config=CBAConfig,
        stage=Stage.TRAINING,
        needs={Need.TRAINING_DATA, Need.TRAINING_CONTROL, Need.TEST_DATA},
        presets={
            "paper": {**paper, "mode": "full", "cover_ratio": 5.0, "contrast": 1.0, "margin": 1.0},
            # The code averages the contrastive loss twice: over some 46 pairs of a batch of 128.
            "released-code": {**paper, "mode": "full", "cover_ratio": 5.0, "contrast": 0.022},
            "data-only": {**paper, "mode": "data-only", "cover_ratio": 5.0},
        },
    )
