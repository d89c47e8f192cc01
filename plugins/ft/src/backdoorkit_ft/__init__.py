"""Fine-tuning on the clean reserve: the baseline every other defense has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from backdoorkit import MethodInfo, Need, Stage, TrainOptions, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["FineTuningConfig", "backdoorkit_defenses"]


@attrs.frozen(kw_only=True)
class FineTuningConfig(TrainOptions):
    """How the victim is trained on; the cosine always spans the real number of epochs."""

    epochs: int = option(100, ge=0, symbol="E", help="Passes over the clean reserve.")
    batch_size: int = option(64, ge=1, help="Images per step.")
    learning_rate: float = option(
        0.01, ge=0, help="Peak learning rate: more removes more backdoor and more accuracy."
    )
    schedule: Literal["constant", "cosine", "one-cycle", "step"] = option(
        "cosine", help="Learning rate over time; every schedule spans the real number of epochs."
    )
    scope: Literal["all", "head", "norm", "last-stages"] = option(
        "all",
        help="What is trained: everything, the last linear layer, the scales and shifts of the "
        "normalisation layers, or the last stages together with all that follows them.",
    )
    last_stages: int = option(
        1, ge=1, help="How many stages (runs of one resolution) the scope last-stages trains."
    )
    freeze_norm_statistics: bool = option(
        False,
        help="Normalise with the victim's running statistics and leave them as they are, "
        "instead of moving them towards the reserve.",
    )
    sharpness_radius: float = option(
        0.0,
        ge=0,
        symbol="ρ",
        help="Length of the step uphill to where the gradient is taken (sharpness-aware "
        "minimisation); 0 is plain fine-tuning, and half the work.",
    )


# CIFAR-10, 5 % reserve. Where mirroring changes the class: horizontal_flip = false.
_BACKDOORBENCH: Final[dict[str, Any]] = {
    "epochs": 100,
    "batch_size": 256,
    "learning_rate": 0.01,
    "weight_decay": 5e-4,
    "schedule": "cosine",
    "crop_padding": 4,
    "horizontal_flip": True,
}


@hookimpl
def backdoorkit_defenses() -> Iterable[MethodInfo]:
    """The defense Fine-tuning."""
    yield MethodInfo(
        name="ft",
        summary="Fine-tuning on the clean reserve.",
        reference="Baseline in Liu, Dolan-Gavitt and Garg, Fine-Pruning, RAID 2018; "
        "settings of Wu et al., BackdoorBench, NeurIPS Datasets and Benchmarks 2022; "
        "sharpness-aware: Foret et al., Sharpness-Aware Minimization, ICLR 2021",
        implementation="backdoorkit_ft._defense:FineTuning",
        config=FineTuningConfig,
        stage=Stage.POST_TRAINING,
        needs={Need.WEIGHTS, Need.CLEAN_SAMPLES},
        presets={
            "backdoorbench": _BACKDOORBENCH,
            # That, with the radius that sharpness-aware minimisation has by default.
            "sharpness-aware": {**_BACKDOORBENCH, "sharpness_radius": 0.05},
            # The fine-tuned teacher of NAD: 0.1 for two epochs of ten, then 0.01.
            "nad-teacher": {
                "epochs": 10,
                "batch_size": 64,
                "learning_rate": 0.1,
                "nesterov": True,
                "weight_decay": 1e-4,
                "schedule": "step",
                "milestones": (0.2,),
                "crop_padding": 4,
                "horizontal_flip": True,
            },
        },
    )
