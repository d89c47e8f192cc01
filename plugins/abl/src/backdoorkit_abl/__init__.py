"""Anti-Backdoor Learning: train on poisoned data, isolate what is learned first, unlearn it."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - read at runtime, where the options are made
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from backdoorkit import MethodInfo, Need, PublishedTable, Stage, TrainOptions, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ABLConfig",
    "IsolationConfig",
    "LossCurvesConfig",
    "backdoorkit_analyses",
    "backdoorkit_defenses",
    "backdoorkit_metrics",
    "backdoorkit_published_tables",
]

_REFERENCE: Final = (
    "Li, Lyu, Koren, Lyu, Li and Ma, Anti-Backdoor Learning: Training Clean Models on Poisoned "
    "Data, NeurIPS 2021, arXiv:2110.11571"
)


@attrs.frozen(kw_only=True)
class ABLConfig(TrainOptions):
    """Isolation (stage 1) and unlearning (stage 2).

    The options shared with all training (epochs, learning rate...) are those of training in
    stage 2. Stage 1 and gradient ascent have their own epochs and rates, and the rest in common.
    """

    isolation_loss: Literal["lga", "flooding", "cross-entropy"] = option(
        "lga",
        help="Loss of stage 1: local gradient ascent, flooding (the same gradient), or plain "
        "cross-entropy as a control.",
    )
    gamma: float = option(
        0.5, ge=0, symbol="γ", help="Loss below which stage 1 ascends (the level of flooding)."
    )
    lga_reduction: Literal["batch", "sample"] = option(
        "batch",
        help="What is compared with gamma: the batch's mean loss (released code), or each "
        "sample's, by which isolation fails.",
    )
    turning_epoch: int = option(20, ge=1, symbol="T_te", help="Epochs of stage 1.")
    isolation_learning_rate: float = option(0.1, ge=0, help="Learning rate of stage 1, constant.")
    isolation_rate: float = option(
        0.01, gt=0, lt=1, symbol="p", help="Share of the training set that is isolated."
    )
    unlearning: Literal[
        "gga",
        "pixel-noise",
        "grad-noise",
        "label-shuffling",
        "label-uniform",
        "label-smoothing",
        "self-learning",
        "fine-tuning-all",
        "fine-tuning-last",
        "fine-tuning-imagenet",
        "retraining",
    ] = option(
        "gga",
        help="What is done with the isolated samples: global gradient ascent (ABL itself), or one "
        "of the alternatives it was compared with.",
    )
    gga_form: Literal["sequential", "joint"] = option(
        "sequential",
        help="Fine-tune on the rest, then ascend on the isolated (released code), or both in "
        "every step (the paper's formula).",
    )
    unlearning_epochs: int = option(
        20, ge=0, help="Most passes of sequential ascent over the isolated samples."
    )
    unlearning_learning_rate: float = option(
        5e-4, ge=0, help="Learning rate of sequential ascent, constant."
    )
    unlearning_batch_size: int = option(
        128, ge=1, help="Isolated images per step of ascent, sequential or joint."
    )
    unlearning_augmentation: bool = option(
        False, help="Augment isolated images in ascent, too, as in training."
    )
    loss_cap: float = option(
        2.0,
        ge=0,
        help="Loss above which an isolated sample is not unlearned further, in units of ln K, the "
        "loss of guessing; 0 is no cap.",
    )
    stop_loss: float | None = option(
        None, gt=0, help="Mean loss of the isolated samples at which sequential ascent ends."
    )
    freeze_norm_statistics: bool = option(
        False, help="Leave running statistics as they are in sequential ascent."
    )
    pixel_noise: float = option(
        0.1, ge=0, symbol="σ", help="Deviation of the noise of pixel-noise, in units of [0, 1]."
    )
    grad_noise: float = option(
        8 / 255, ge=0, symbol="ε", help="Step of grad-noise along the sign of the gradient."
    )
    relabelling: Literal["random", "permuted"] = option(
        "random",
        help="Labels of label-shuffling, anew in every epoch: uniform over the classes, or those "
        "of the isolated samples permuted, which changes nothing where all are the target.",
    )
    smoothing: float = option(
        0.1, ge=0, le=1, symbol="α", help="Label smoothing of the isolated, in label-smoothing."
    )
    helper_epochs: int = option(
        10, ge=1, help="Epochs of the model that gives new labels in self-learning."
    )
    last_layers: int = option(
        1, ge=1, help="Layers or blocks that fine-tuning-last trains, counted from the output."
    )
    reset_last_layers: bool = option(
        False, help="Whether fine-tuning-last starts them from initial weights."
    )
    imagenet_weights: Path | None = option(
        None,
        help="File (.safetensors) of ImageNet weights of the victim's architecture, for "
        "fine-tuning-imagenet.",
    )
    epochs: int = option(60, ge=0, help="Passes of training in stage 2.")
    learning_rate: float = option(0.1, ge=0, help="Peak learning rate of training in stage 2.")
    nesterov: bool = option(True, help="Nesterov momentum.")
    weight_decay: float = option(1e-4, ge=0, help="L2 penalty, added to the gradient.")
    schedule: Literal["constant", "cosine", "one-cycle", "step"] = option(
        "step", help="Learning rate of training in stage 2 over time."
    )
    milestones: tuple[float, ...] = option(
        (2 / 3,),
        ge=0,
        le=1,
        help="Where the step schedule divides by ten, as shares of all epochs.",
    )

    def __attrs_post_init__(self) -> None:
        if self.unlearning == "fine-tuning-imagenet" and self.imagenet_weights is None:
            raise ValueError(
                "imagenet_weights must name a weights file for unlearning "
                "'fine-tuning-imagenet': none is downloaded"
            )


@attrs.frozen(kw_only=True)
class IsolationConfig:
    """What the metric tells beside precision, recall and area of what was isolated."""

    rate: float | None = option(
        None,
        gt=0,
        le=1,
        symbol="p",
        help="Tell also the precision of this share of the training set, of lowest loss: of what "
        "another isolation rate would have isolated.",
    )


@attrs.frozen(kw_only=True)
class LossCurvesConfig(TrainOptions):
    """Training of the model whose losses are looked at; by default as ABL's stage 1, but with
    plain cross-entropy.
    """

    isolation_loss: Literal["lga", "flooding", "cross-entropy"] = option(
        "cross-entropy",
        help="Loss of training: plain cross-entropy, local gradient ascent, or flooding.",
    )
    gamma: float = option(0.5, ge=0, symbol="γ", help="Loss below which lga and flooding ascend.")
    lga_reduction: Literal["batch", "sample"] = option(
        "batch", help="What lga compares with gamma: the batch's mean loss, or each sample's."
    )
    isolation_rate: float = option(
        0.01,
        gt=0,
        lt=1,
        symbol="p",
        help="Share of the training set, of lowest loss, whose precision is told.",
    )
    epochs: int = option(20, ge=1, help="Passes over the training set; losses after each.")
    nesterov: bool = option(True, help="Nesterov momentum.")
    weight_decay: float = option(1e-4, ge=0, help="L2 penalty, added to the gradient.")
    schedule: Literal["constant", "cosine", "one-cycle", "step"] = option(
        "constant", help="Learning rate over time."
    )


# CIFAR-10. Where mirroring changes the class: horizontal_flip = false.
_COMMON: Final[dict[str, Any]] = {
    "gamma": 0.5,
    "isolation_rate": 0.01,
    "unlearning": "gga",
    "gga_form": "sequential",
    "epochs": 60,
    "schedule": "step",
    "milestones": (2 / 3,),
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 1e-4,
    "crop_padding": 4,
    "horizontal_flip": True,
}


_PUBLISHED: Final = (
    "abl-cifar10",
    "abl-gtsrb",
    "abl-imagenet-subset",
    "abl-turning-epoch",
    "abl-stress",
    "abl-unlearning-methods",
)


@hookimpl
def backdoorkit_defenses() -> Iterable[MethodInfo]:
    """The defense ABL."""
    yield MethodInfo(
        name="abl",
        summary="Anti-Backdoor Learning: isolate the samples that training learns first, and "
        "unlearn them.",
        reference=_REFERENCE,
        implementation="backdoorkit_abl._defense:ABL",
        config=ABLConfig,
        stage=Stage.TRAINING,
        needs={Need.TRAINING_DATA, Need.TRAINING_CONTROL},
        presets={
            # 100 epochs in all, as in the paper.
            "paper": {
                **_COMMON,
                "isolation_loss": "lga",
                "turning_epoch": 20,
                "isolation_learning_rate": 0.1,
                "batch_size": 128,
                "learning_rate": 0.1,
                "unlearning_epochs": 20,
                "unlearning_learning_rate": 5e-4,
            },
            # Unlearns for five epochs, the first of which only measures.
            "official": {
                **_COMMON,
                "isolation_loss": "flooding",
                "turning_epoch": 10,
                "isolation_learning_rate": 0.1,
                "batch_size": 128,
                "learning_rate": 0.1,
                "unlearning_epochs": 4,
                "unlearning_learning_rate": 5e-4,
                "unlearning_batch_size": 128,
                "loss_cap": 0.0,
            },
            # What its code does: the rates of its configuration file are not read.
            "backdoorbench": {
                **_COMMON,
                "isolation_loss": "flooding",
                "turning_epoch": 20,
                "isolation_learning_rate": 0.01,
                "batch_size": 256,
                "learning_rate": 0.01,
                "unlearning_epochs": 20,
                "unlearning_learning_rate": 1e-4,
                "unlearning_batch_size": 256,
                "unlearning_augmentation": True,
                "loss_cap": 0.0,
            },
        },
    )


@hookimpl
def backdoorkit_metrics() -> Iterable[MethodInfo]:
    """How well a defense isolated the poisoned samples."""
    yield MethodInfo(
        name="isolation-precision",
        summary="Isolation: share of the isolated training samples that are poisoned, share of the "
        "poisoned that are isolated, and how well losses tell them apart.",
        reference=_REFERENCE,
        implementation="backdoorkit_abl._metric:IsolationPrecision",
        config=IsolationConfig,
        stage=Stage.TRAINING,
        needs={Need.POISON_RECORD},
    )


@hookimpl
def backdoorkit_analyses() -> Iterable[MethodInfo]:
    """The exploratory experiment behind ABL."""
    yield MethodInfo(
        name="loss-curves",
        summary="Training loss of clean and backdoored samples, epoch by epoch, and how well it "
        "tells them apart.",
        reference=_REFERENCE,
        implementation="backdoorkit_abl._loss_curves:LossCurves",
        config=LossCurvesConfig,
        stage=Stage.TRAINING,
        needs={Need.TRAINING_DATA, Need.TRAINING_CONTROL, Need.POISON_RECORD},
        presets={"lga": {"isolation_loss": "lga"}},
    )


@hookimpl
def backdoorkit_published_tables() -> Iterable[PublishedTable]:
    """The tables of the paper's talk."""
    for name in _PUBLISHED:
        yield PublishedTable(name=name, resource=f"backdoorkit_abl:{name}.toml")
