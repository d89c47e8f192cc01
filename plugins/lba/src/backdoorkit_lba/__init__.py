"""Latent backdoor: a patch that lies in a teacher's features, where a student finds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from backdoorkit import (
    IndexPolicy,
    LabelMapping,
    MethodInfo,
    Need,
    Stage,
    SurrogateOptions,
    hookimpl,
    option,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["LBAConfig", "backdoorkit_attacks"]


@attrs.frozen(kw_only=True)
class LBAConfig(SurrogateOptions):
    """What is attacked, where the network is cut, and how patch and model come together.

    The surrogate's options say how the teacher (``transfer``), the clean model (``single-task``) or
    the surrogate (``data-only``) is trained; the first two have the victim's own architecture.
    """

    mode: Literal["transfer", "single-task", "data-only"] = option(
        "transfer",
        help="The victim is a student of a teacher with a latent backdoor, and trained on clean "
        "images alone; or the attacker trains the victim himself; or he poisons a training set "
        "with the patch. Only the last two read the poisoning rate.",
    )
    teacher_classes: tuple[int, ...] = option(
        (), ge=0, help="Classes of the teacher's own task. Default: all but the target."
    )
    layer: str = option(
        "",
        symbol="L",
        help="Last layer that the student keeps; its output is the feature space. Default: all "
        "before the last linear layer.",
    )
    size: int | None = option(
        None, ge=1, help="Side of the patch in pixels. Default: a fifth of the image's."
    )
    offset: int = option(
        1, ge=0, help="Pixels between the patch and the lower right edges of the image."
    )
    trigger_images: int = option(1000, ge=1, help="Images that the patch is optimised on.")
    trigger_epochs: int = option(50, ge=0, help="Passes over them.")
    trigger_batch_size: int = option(32, ge=1, help="Images per step of them.")
    trigger_learning_rate: float = option(0.1, gt=0, help="Adam's learning rate on the patch.")
    feature_weight: float | None = option(
        None,
        ge=0,
        symbol="λ",
        help="Weight of the distance to the target's features in the loss. Default: one over the "
        "mean square of these features.",
    )
    extension_epochs: int = option(
        10,
        ge=0,
        help="Passes in which the teacher learns the target class, and again in which its last "
        "layer is tuned after the class was taken out.",
    )
    extension_learning_rate: float = option(0.01, gt=0, help="Peak learning rate in them.")
    injection_epochs: int = option(
        5, ge=0, help="Passes in which the patch is bound to the target's features."
    )
    injection_batch_size: int = option(16, ge=1, help="Images per step of them, clean and stamped.")
    injection_learning_rate: float = option(
        0.001, gt=0, help="Adam's learning rate in them; it stays."
    )

    @property
    def controls_training(self) -> bool:
        """Except where only data are poisoned once."""
        return self.mode != "data-only" or self.index_policy is IndexPolicy.PER_BATCH

    def __attrs_post_init__(self) -> None:
        if self.mode != "data-only" and self.index_policy is IndexPolicy.PER_BATCH:
            raise ValueError(
                f"index_policy 'per-batch' goes with mode 'data-only', not {self.mode!r}"
            )
        if self.label_map is LabelMapping.ALL_TO_ALL:
            raise ValueError(
                "the patch leads to the features of one class, so label_map cannot be 'all-to-all'"
            )
        if self.target in self.teacher_classes:
            raise ValueError(
                f"teacher_classes must not hold the target {self.target}, which the teacher does "
                "not know"
            )
        if len(set(self.teacher_classes)) < len(self.teacher_classes):
            raise ValueError(f"teacher_classes must differ, not {list(self.teacher_classes)}")


@hookimpl
def backdoorkit_attacks() -> Iterable[MethodInfo]:
    """The latent backdoor."""
    yield MethodInfo(
        name="lba",
        summary="A patch bound to a class in a teacher's features; it comes alive in students "
        "that learn the class.",
        reference="Yao, Li, Zheng, Zhao: Latent Backdoor Attacks on Deep Neural Networks, CCS "
        "2019, arXiv:1905.10447",
        implementation="backdoorkit_lba._attack:LBA",
        config=LBAConfig,
        stage=Stage.TRAINING,
        needs={Need.TRAINING_DATA, Need.TRAINING_CONTROL},
        presets={
            "official": {"mode": "transfer", "feature_weight": 0.05},
            "trojanzoo": {"mode": "single-task", "feature_weight": 0.5, "poison_rate": 0.1},
            "abl": {"mode": "data-only", "surrogate": "wrn-16-1", "poison_rate": 0.1, "target": 0},
        },
    )
