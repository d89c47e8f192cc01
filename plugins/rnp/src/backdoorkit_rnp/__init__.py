"""Reconstructive Neuron Pruning: unlearn the clean task, see which units keep it from returning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from backdoorkit import MethodInfo, Need, Selection, Stage, TrainOptions, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["RNPConfig", "backdoorkit_defenses"]


@attrs.frozen(kw_only=True)
class RNPConfig(TrainOptions):
    """Unlearning by gradient ascent, recovering by masks, pruning.

    The options shared with all training (epochs, learning rate...) are those of unlearning; batch
    size and augmentation are those of recovering, too.
    """

    stop_accuracy: float | None = option(
        None,
        ge=0,
        le=1,
        symbol="CA_min",
        help="Accuracy on the reserve, measured while an epoch trains, at which unlearning ends; "
        "unset is 2 / classes (for two or three classes, half way from chance to one).",
    )
    gradient_clip: float | None = option(
        None, gt=0, help="Largest gradient norm of unlearning; unset does not clip."
    )
    recovery_epochs: int = option(20, ge=0, help="Passes over the reserve that learn the masks.")
    recovery_rate: float = option(0.2, gt=0, help="Learning rate of the masks.")
    recovery_momentum: float = option(0.9, ge=0, lt=1, help="SGD momentum of the masks.")
    alpha: float = option(0.2, gt=0, le=1, symbol="α", help="Factor on the loss of recovering.")
    units: Literal["auto", "norm", "neuron"] = option(
        "auto",
        help="What is masked: scales of norm layers, rows of convolutions and linear layers, or "
        "auto: the norms where there are any. The head never is.",
    )
    norm_statistics: Literal["batch", "running"] = option(
        "batch",
        help="What batch norm uses while masks are learnt: the batch's statistics (the model is in "
        "train mode) or its running ones (eval mode).",
    )
    selection: Selection = option(
        Selection.CLEAN,
        help="How the level is chosen: fixed, or by accuracy on a held-out part of the reserve "
        "(clean), or by test attack success (oracle).",
    )
    prune_by: Literal["threshold", "number"] = option(
        "threshold", help="What a level is: a threshold on the masks or a number of units."
    )
    threshold: float = option(
        0.4,
        ge=0,
        le=1,
        symbol="DT",
        help="Units with masks up to this are pruned by the fixed selection.",
    )
    number: int = option(
        50, ge=0, help="Units with the lowest masks that are pruned by the fixed selection."
    )
    grid: tuple[float, ...] = option(
        tuple(level / 20 for level in range(19)),
        ge=0,
        le=1,
        help="Thresholds tried by the selections clean and oracle, ascending.",
    )
    step: int = option(20, ge=1, help="Distance of the numbers of units tried by these.")
    tolerance: float = option(
        0.05, ge=0, le=1, help="Accuracy that pruning may cost on the held-out part."
    )
    held_out: float = option(
        0.2, gt=0, lt=1, help="Share of the reserve kept for choosing the level."
    )
    epochs: int = option(100, ge=0, help="Most passes of unlearning over the reserve.")
    learning_rate: float = option(0.01, gt=0, help="Peak learning rate of unlearning.")
    schedule: Literal["constant", "cosine", "one-cycle", "step"] = option(
        "constant", help="Learning rate of unlearning over time."
    )

    def __attrs_post_init__(self) -> None:
        if list(self.grid) != sorted(set(self.grid)):
            raise ValueError(f"grid must ascend, without repeats, not {self.grid}")


# CIFAR-10, 1 % reserve. Where mirroring changes the class: horizontal_flip = false.
_PAPER = {
    "stop_accuracy": 0.1,
    "epochs": 20,
    "batch_size": 128,
    "learning_rate": 0.01,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "step",
    "milestones": [0.5],
    "recovery_epochs": 20,
    "recovery_rate": 0.2,
    "alpha": 0.2,
    "selection": "clean",
    "prune_by": "threshold",
    "crop_padding": 4,
    "horizontal_flip": True,
}


@hookimpl
def backdoorkit_defenses() -> Iterable[MethodInfo]:
    """The defense RNP."""
    yield MethodInfo(
        name="rnp",
        summary="Reconstructive Neuron Pruning: unlearn clean images, recover them by masks and "
        "prune the lowest.",
        reference="Li, Lyu, Ma, Koren, Lyu, Li and Jiang, Reconstructive Neuron Pruning for "
        "Backdoor Defense, ICML 2023",
        implementation="backdoorkit_rnp._defense:RNP",
        config=RNPConfig,
        stage=Stage.POST_TRAINING,
        needs={Need.WEIGHTS, Need.CLEAN_SAMPLES},
        presets={
            "paper": _PAPER,
            # What the released code runs: it stops at twice chance and has one epoch more.
            "official": {
                **_PAPER,
                "stop_accuracy": 0.2,
                "epochs": 21,
                "milestones": [10 / 21, 20 / 21],
            },
            # A threshold that costs about a tenth of the accuracy in the authors' own log.
            "backdoorbench": {
                **_PAPER,
                "stop_accuracy": 0.2,
                "batch_size": 256,
                "selection": "fixed",
                "threshold": 0.7,
            },
        },
    )
