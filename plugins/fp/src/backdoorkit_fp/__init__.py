"""Fine-Pruning: remove the units that clean images leave dormant, then fine-tune."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from backdoorkit import MethodInfo, Need, Selection, Stage, TrainOptions, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["FinePruningConfig", "backdoorkit_defenses"]


@attrs.frozen(kw_only=True)
class FinePruningConfig(TrainOptions):
    """What is pruned and how far, then how the pruned model is fine-tuned."""

    statistic: Literal["auto", "mean", "abs"] = option(
        "auto",
        help="Activation that ranks a unit: its mean, the mean of its absolute value, or auto: "
        "the mean where no activation is negative, else the absolute value.",
    )
    selection: Selection = option(Selection.CLEAN, help="How the number of pruned units is chosen.")
    ratio: float = option(0.8, ge=0, le=1, help="Share of units pruned by the fixed selection.")
    step: float = option(
        0.01, gt=0, le=1, help="Distance of the levels tried, as a share of the units."
    )
    tolerance: float = option(
        0.1,
        ge=0,
        le=1,
        symbol="δ",
        help="Accuracy that pruning may cost on the held-out part, before fine-tuning.",
    )
    held_out: float = option(
        0.2, gt=0, lt=1, help="Share of the reserve on which pruning levels are judged."
    )
    epochs: int = option(100, ge=0, help="Passes of fine-tuning over the clean reserve.")
    batch_size: int = option(64, ge=1, help="Images per step.")
    learning_rate: float = option(0.01, ge=0, help="Peak learning rate of fine-tuning.")
    schedule: Literal["constant", "cosine", "one-cycle", "step"] = option(
        "cosine", help="Learning rate over time; every schedule spans the real number of epochs."
    )


@hookimpl
def backdoorkit_defenses() -> Iterable[MethodInfo]:
    """The defense Fine-Pruning."""
    yield MethodInfo(
        name="fp",
        summary="Fine-Pruning: prune the units dormant on clean images, then fine-tune.",
        reference="Liu, Dolan-Gavitt and Garg, Fine-Pruning: Defending Against Backdooring Attacks "
        "on Deep Neural Networks, RAID 2018",
        implementation="backdoorkit_fp._defense:FinePruning",
        config=FinePruningConfig,
        stage=Stage.POST_TRAINING,
        needs={Need.WEIGHTS, Need.CLEAN_SAMPLES},
        presets={
            # Unit by unit. The accuracy that it gives up is not known to us: the default's.
            "paper": {"statistic": "mean", "selection": "clean", "step": 1e-4},
            # CIFAR-10, 5 % reserve. Where mirroring changes the class: horizontal_flip = false.
            "backdoorbench": {
                "statistic": "mean",
                "selection": "clean",
                "step": 0.01,
                "tolerance": 0.1,
                "epochs": 100,
                "batch_size": 256,
                "learning_rate": 0.01,
                "weight_decay": 5e-4,
                "schedule": "cosine",
                "crop_padding": 4,
                "horizontal_flip": True,
            },
            # The released face model: 48 of 60 units, and no fine-tuning code.
            "official": {"statistic": "mean", "selection": "fixed", "ratio": 0.8, "epochs": 0},
        },
    )
