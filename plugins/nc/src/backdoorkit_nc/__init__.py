"""Neural Cleanse: reverse-engineer a trigger for every class and suspect the class that is easy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from backdoorkit import MethodInfo, Need, Stage, TrainOptions, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "DetectionConfig",
    "InversionOptions",
    "RepairConfig",
    "backdoorkit_defenses",
    "backdoorkit_detectors",
]


# Without slots, so that it combines with the options of training.
@attrs.frozen(kw_only=True, slots=False)
class InversionOptions:
    """How triggers are reversed and which of them are outliers; detector and defense share it."""

    inversion_steps: int = option(
        1000, ge=1, help="Most outer steps; the weight of the mask's norm changes between them."
    )
    inversion_batches: int = option(
        31, ge=0, help="Adam steps per outer step; 0 is one pass over the reserve."
    )
    inversion_batch_size: int = option(32, ge=1, help="Images per class and Adam step.")
    inversion_rate: float = option(0.1, gt=0, help="Learning rate of Adam on mask and pattern.")
    start: Literal["random", "constant"] = option(
        "random",
        help="First mask and pattern: uniform in the box, drawn per class, or 0.88 everywhere.",
    )
    success_threshold: float = option(
        0.99, gt=0, le=1, symbol="τ", help="Success that a reversed trigger has to have."
    )
    penalty: float = option(
        1e-3, gt=0, symbol="λ", help="First weight of the mask's L1 norm in the loss."
    )
    penalty_start: Literal["after-success", "at-once"] = option(
        "after-success",
        help="When that weight begins: once a trigger of any size is found, or in the first step.",
    )
    penalty_factor: float = option(
        2.0,
        gt=1,
        symbol="c",
        help="Factor on the weight after enough successful steps; the weight is divided by "
        "c to the power 1.5 after as many failed ones.",
    )
    penalty_patience: int = option(
        5, ge=1, help="Successful or failed steps in a row before the weight changes."
    )
    stop_factor: float = option(
        1.0,
        gt=0,
        le=1,
        help="A norm below this share of the smallest one so far counts as progress.",
    )
    stop_patience: int = option(
        25, ge=1, help="Outer steps without progress after which a class is finished."
    )
    classes_at_once: int = option(
        0, ge=0, help="Classes per forward pass; 0 is as many as memory and cache suggest."
    )
    outliers: Literal["deviations", "log-sizes"] = option(
        "deviations",
        help="How classes are compared: norms by their median and its deviation, as in the paper; "
        "or their logarithms by mean and standard deviation of the larger ones, which is always "
        "under the family-wise rule.",
    )
    threshold: float = option(2.0, ge=0, help="Anomaly index above which a class is flagged.")
    threshold_rule: Literal["fixed", "family-wise"] = option(
        "fixed",
        help="What a class is flagged by: the fixed threshold, or the one that flags a clean model "
        "of this many classes with the given false alarm rate.",
    )
    false_alarm_rate: float = option(
        0.05, gt=0, lt=1, help="Share of clean models flagged under the family-wise rule."
    )


@attrs.frozen(kw_only=True)
class DetectionConfig(InversionOptions):
    """Options of the detector."""

    filter_share: float = option(
        0.01, gt=0, le=1, help="Share of penultimate units that the input filter watches."
    )
    filter_false_positives: float = option(
        0.05, gt=0, lt=1, help="Share of the reserve that the input filter's threshold rejects."
    )


@attrs.frozen(kw_only=True)
class RepairConfig(InversionOptions, TrainOptions):
    """Options of the defense; those shared with all training are those of unlearning."""

    repair: Literal["unlearning", "pruning"] = option(
        "unlearning",
        help="What is done about flagged classes: train on images that carry the reversed trigger "
        "and their true label, or remove the penultimate units that it excites.",
    )
    stamped_ratio: float = option(
        0.2, gt=0, le=1, help="Share of each batch that carries a reversed trigger in unlearning."
    )
    unlearning_stop: float | None = option(
        None,
        ge=0,
        le=1,
        help="Reversed triggers' success on held-out images at which unlearning ends early; "
        "unset runs all epochs and holds nothing out.",
    )
    pruning_stop: float = option(
        0.01,
        ge=0,
        le=1,
        symbol="ε",
        help="Reversed triggers' success on held-out images at which pruning ends.",
    )
    tolerance: float = option(
        0.05, ge=0, le=1, symbol="δ", help="Held-out accuracy that pruning may cost."
    )
    largest_share: float = option(0.3, ge=0, le=1, help="Most units pruned, as a share of all.")
    held_out: float = option(
        0.2, gt=0, lt=1, help="Share of the reserve on which pruning or an early stop is judged."
    )
    epochs: int = option(1, ge=0, help="Passes of unlearning over the reserve.")
    batch_size: int = option(32, ge=1, help="Images per step of unlearning.")
    learning_rate: float = option(0.01, ge=0, help="Peak learning rate of unlearning.")
    schedule: Literal["constant", "cosine", "one-cycle", "step"] = option(
        "constant", help="Learning rate of unlearning over time."
    )


_REFERENCE = (
    "Wang, Yao, Shan, Li, Viswanath, Zheng and Zhao, Neural Cleanse: Identifying and Mitigating "
    "Backdoor Attacks in Neural Networks, IEEE S&P 2019"
)

# What the authors' example runs. Their code has no mitigation.
_OFFICIAL = {
    "inversion_steps": 1000,
    "inversion_batches": 31,
    "inversion_batch_size": 32,
    "inversion_rate": 0.1,
    "start": "random",
    "success_threshold": 0.99,
    "penalty": 1e-3,
    "penalty_start": "after-success",
    "penalty_factor": 2.0,
    "penalty_patience": 5,
    "stop_factor": 1.0,
    "stop_patience": 25,
    "outliers": "deviations",
    "threshold": 2.0,
    "threshold_rule": "fixed",
}
_BACKDOORBENCH = {
    **_OFFICIAL,
    "inversion_steps": 80,
    "inversion_batches": 0,
    "inversion_batch_size": 256,
    "start": "constant",
    "success_threshold": 0.98,
    "penalty_start": "at-once",
    "stop_factor": 0.99,
}
# 400 Adam steps instead of up to 31,000: minutes on a CPU, and noisier scores.
_SMALL = {
    "inversion_steps": 50,
    "inversion_batches": 8,
    "inversion_batch_size": 16,
    "penalty_start": "at-once",
}


@hookimpl
def backdoorkit_detectors() -> Iterable[MethodInfo]:
    """The detector Neural Cleanse."""
    yield MethodInfo(
        name="nc",
        summary="Neural Cleanse: reverse a trigger for every class; an outlier in size is a "
        "backdoor.",
        reference=_REFERENCE,
        implementation="backdoorkit_nc._detector:NeuralCleanse",
        config=DetectionConfig,
        stage=Stage.POST_TRAINING,
        needs={Need.WEIGHTS, Need.CLEAN_SAMPLES},
        presets={
            "paper": {**_OFFICIAL, "filter_share": 0.01, "filter_false_positives": 0.05},
            "official": _OFFICIAL,
            "backdoorbench": _BACKDOORBENCH,
            "small": _SMALL,
        },
    )


@hookimpl
def backdoorkit_defenses() -> Iterable[MethodInfo]:
    """The defense Neural Cleanse."""
    yield MethodInfo(
        name="nc",
        summary="Neural Cleanse: reverse the trigger, then unlearn it or prune what it excites.",
        reference=_REFERENCE,
        implementation="backdoorkit_nc._defense:NeuralCleanseRepair",
        config=RepairConfig,
        stage=Stage.POST_TRAINING,
        needs={Need.WEIGHTS, Need.CLEAN_SAMPLES},
        presets={
            "paper": {**_OFFICIAL, "repair": "unlearning", "stamped_ratio": 0.2, "epochs": 1},
            "official": _OFFICIAL,
            # CIFAR-10, 5 % reserve. Where mirroring changes the class: horizontal_flip = false.
            "backdoorbench": {
                **_BACKDOORBENCH,
                "repair": "unlearning",
                "stamped_ratio": 0.2,
                "epochs": 100,
                "batch_size": 256,
                "learning_rate": 0.01,
                "momentum": 0.9,
                "weight_decay": 5e-4,
                "schedule": "cosine",
                "crop_padding": 4,
                "horizontal_flip": True,
            },
        },
    )
