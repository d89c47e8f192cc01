"""Two-Stage Backdoor Defense: reinitialise what clean unlearning moves most, then tune calmly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from backdoorkit import (
    MethodInfo,
    Need,
    PublishedTable,
    Selection,
    Stage,
    TrainOptions,
    hookimpl,
    option,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ActivenessConfig",
    "TSBDConfig",
    "TriggerActivatedChangeConfig",
    "UnlearningCorrelationConfig",
    "backdoorkit_analyses",
    "backdoorkit_defenses",
    "backdoorkit_published_tables",
]

_REFERENCE = (
    "Lin, Liu, Wei, Li and Xiong, Unveiling and Mitigating Backdoor Vulnerabilities based on "
    "Unlearning Weight Changes and Backdoor Activeness, NeurIPS 2024"
)


@attrs.frozen(kw_only=True)
class TSBDConfig(TrainOptions):
    """Unlearning, reinitialisation (stage 1) and activeness-aware fine-tuning (stage 2).

    The options shared with all training (epochs, learning rate...) are those of stage 2.
    """

    neuron_ratio: float = option(
        0.15,
        ge=0,
        le=1,
        symbol="n",
        help="Share of neurons, by weight change, of which sub-weights are zeroed.",
    )
    zero_ratio: float = option(
        0.7,
        ge=0,
        le=1,
        symbol="m",
        help="Share of the chosen neurons' sub-weights, pooled, that is set to zero.",
    )
    selection: Selection = option(
        Selection.FIXED,
        help="How the neuron ratio is chosen: fixed, or from the grid by accuracy on a held-out "
        "part of the reserve (clean) or by test attack success (oracle).",
    )
    grid: tuple[float, ...] = option(
        (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 0.9),
        gt=0,
        le=1,
        help="Neuron ratios tried by the selections clean and oracle, ascending.",
    )
    tolerance: float = option(
        0.05, ge=0, le=1, help="Accuracy the repaired model may lose on the held-out part."
    )
    held_out: float = option(
        0.2, gt=0, lt=1, help="Share of the reserve kept for choosing the neuron ratio."
    )
    layers: Literal["auto", "conv", "linear"] = option(
        "auto",
        help="Whose neurons are ranked: convolutions, linear and attention rows, or auto: "
        "convolutions unless the only one embeds patches. Shortcuts and the head never are.",
    )
    order: Literal["nwc", "random", "reversed"] = option(
        "nwc", help="Order of neurons; random and reversed are controls, not defenses."
    )
    unlearning_rate: float = option(
        1e-4, gt=0, help="Learning rate of clean unlearning in its first epoch."
    )
    unlearning_growth: float = option(
        1.25,
        ge=1,
        help="Factor on that learning rate after every epoch, so that unlearning also ends on a "
        "small reserve with few steps per epoch; 1 keeps it constant.",
    )
    max_epochs: int = option(1000, ge=0, help="Most epochs of unlearning.")
    stop_accuracy: float | None = option(
        None,
        ge=0,
        le=1,
        help="Accuracy on the reserve at which unlearning ends; unset is chance: the share of the "
        "reserve's largest class, 1 / classes where they are balanced.",
    )
    perturbation: float = option(
        0.05, gt=0, symbol="r", help="Length of the weight step to the second gradient."
    )
    blend: float = option(
        0.7,
        ge=0,
        le=1,
        symbol="α",
        help="Share of the second gradient (α = λ / r); 0 is plain fine-tuning.",
    )
    norm: Literal["tensor", "global"] = option(
        "tensor",
        help="What the step is normalised by: each tensor's own gradient norm (released code) or "
        "that of all tensors together (the paper's formula).",
    )
    epochs: int = option(20, ge=0, help="Passes of fine-tuning over the reserve.")
    batch_size: int = option(64, ge=1, help="Images per step, in unlearning and fine-tuning.")
    learning_rate: float = option(0.01, ge=0, help="Learning rate of fine-tuning.")
    weight_decay: float = option(0.0, ge=0, help="L2 penalty, added to the gradient.")
    schedule: Literal["constant", "cosine", "one-cycle", "step"] = option(
        "constant", help="Learning rate of fine-tuning over time."
    )

    def __attrs_post_init__(self) -> None:
        if list(self.grid) != sorted(set(self.grid)):
            raise ValueError(f"grid must ascend, without repeats, not {self.grid}")


@attrs.frozen(kw_only=True)
class UnlearningCorrelationConfig:
    """Two unlearnings from the same weights, at the same rates."""

    layers: Literal["auto", "conv", "linear"] = option(
        "auto", help="Whose neurons are looked at, as in the defense."
    )
    unlearning_rate: float = option(
        1e-4, gt=0, help="Learning rate of unlearning in its first epoch."
    )
    unlearning_growth: float = option(
        1.25, ge=1, help="Factor on that learning rate after every epoch; 1 keeps it constant."
    )
    max_epochs: int = option(1000, ge=1, help="Most epochs of an unlearning.")
    stop_accuracy: float | None = option(
        None,
        ge=0,
        le=1,
        help="Accuracy on the reserve at which clean unlearning ends; unset is chance, the share "
        "of the reserve's largest class.",
    )
    stop_success: float = option(
        0.05, ge=0, le=1, help="Attack success on the reserve at which poison unlearning ends."
    )
    batch_size: int = option(64, ge=1, help="Images per step.")
    momentum: float = option(0.9, ge=0, lt=1, help="SGD momentum.")


@attrs.frozen(kw_only=True)
class ActivenessConfig:
    """One pass over the reserve, with or without steps."""

    layers: Literal["auto", "conv", "linear"] = option(
        "auto", help="Whose neurons are looked at, as in the defense."
    )
    update: bool = option(
        False,
        help="Take a step of clean unlearning after every gradient, as the paper does; without, "
        "all gradients are those of the model as it is.",
    )
    unlearning_rate: float = option(1e-4, gt=0, help="Learning rate of these steps.")
    batch_size: int = option(
        64, ge=1, help="Images per gradient; the smaller, the more noise is in it."
    )
    momentum: float = option(0.9, ge=0, lt=1, help="SGD momentum of these steps.")


@attrs.frozen(kw_only=True)
class TriggerActivatedChangeConfig:
    """What is measured, and the unlearning whose weight changes are compared with it."""

    layers: Literal["auto", "conv", "linear"] = option(
        "auto", help="Whose neurons are looked at, as in the defense; attention's rows are not."
    )
    norm: Literal["l1", "l2"] = option(
        "l2",
        help="Norm of the difference of a channel's maps: l2 as in the definition, l1 as in "
        "BackdoorBench.",
    )
    after_norm: bool = option(
        True,
        help="Look at channels behind the batch norm of layers that have one to themselves, so "
        "that channels are of comparable size; without, at the layer's own output.",
    )
    images: int = option(1000, ge=1, help="Most test images that are looked at.")
    ratio: float = option(
        0.1, gt=0, le=1, symbol="q", help="Share of a layer's neurons whose coverage is told."
    )
    unlearning_rate: float = option(
        1e-4, gt=0, help="Learning rate of unlearning in its first epoch."
    )
    unlearning_growth: float = option(
        1.25, ge=1, help="Factor on that learning rate after every epoch; 1 keeps it constant."
    )
    max_epochs: int = option(1000, ge=1, help="Most epochs of an unlearning.")
    stop_success: float = option(
        0.05, ge=0, le=1, help="Attack success on the reserve at which poison unlearning ends."
    )
    batch_size: int = option(64, ge=1, help="Images per step of unlearning.")
    momentum: float = option(0.9, ge=0, lt=1, help="SGD momentum of unlearning.")


# CIFAR-10, 5 % reserve. Where mirroring changes the class: horizontal_flip = false.
_PAPER = {
    "neuron_ratio": 0.15,
    "zero_ratio": 0.7,
    "unlearning_rate": 1e-4,
    "unlearning_growth": 1.0,
    "perturbation": 0.05,
    "blend": 0.7,
    "norm": "global",
    "epochs": 20,
    "batch_size": 256,
    "learning_rate": 0.01,
    "weight_decay": 0.0,
    "schedule": "constant",
    "crop_padding": 4,
    "horizontal_flip": True,
}


@hookimpl
def backdoorkit_defenses() -> Iterable[MethodInfo]:
    """The defense TSBD."""
    yield MethodInfo(
        name="tsbd",
        summary="Two-Stage Backdoor Defense: zero what clean unlearning moves most, then fine-tune "
        "with a gradient-norm penalty.",
        reference=_REFERENCE,
        implementation="backdoorkit_tsbd._defense:TSBD",
        config=TSBDConfig,
        stage=Stage.POST_TRAINING,
        needs={Need.WEIGHTS, Need.CLEAN_SAMPLES},
        presets={
            "paper": _PAPER,
            # What the released code runs: norms per tensor, one epoch more than it is told, and a
            # stop at 10 % whatever the number of classes.
            "official": {**_PAPER, "norm": "tensor", "epochs": 21, "stop_accuracy": 0.1},
        },
    )


@hookimpl
def backdoorkit_analyses() -> Iterable[MethodInfo]:
    """The observations behind TSBD."""
    yield MethodInfo(
        name="unlearning-correlation",
        summary="Correlation of the weight changes by unlearning clean and by unlearning triggered "
        "images (TSBD's Observation 1), with controls.",
        reference=_REFERENCE,
        implementation="backdoorkit_tsbd._unlearning_correlation:UnlearningCorrelation",
        config=UnlearningCorrelationConfig,
        needs={Need.WEIGHTS, Need.CLEAN_SAMPLES, Need.TRIGGER, Need.CLEAN_TWIN},
        presets={"paper": {"unlearning_growth": 1.0, "batch_size": 256}},
    )
    yield MethodInfo(
        name="activeness",
        summary="Size of the neurons' gradients on clean images in the backdoored model and in its "
        "clean twin (TSBD's Observation 2).",
        reference=_REFERENCE,
        implementation="backdoorkit_tsbd._neuron_activeness:NeuronActiveness",
        config=ActivenessConfig,
        needs={Need.WEIGHTS, Need.CLEAN_SAMPLES, Need.CLEAN_TWIN},
        presets={"paper": {"update": True, "batch_size": 256}},
    )
    yield MethodInfo(
        name="trigger-activated-change",
        summary="How far the trigger moves every neuron (TAC), and how many of those moved most "
        "are found by weight change or low activation.",
        reference="Zheng, Tang, Li and Liu, Data-free Backdoor Removal based on Channel "
        f"Lipschitzness, ECCV 2022; coverage: {_REFERENCE}",
        implementation="backdoorkit_tsbd._trigger_activated_change:TriggerActivatedChange",
        config=TriggerActivatedChangeConfig,
        needs={
            Need.WEIGHTS,
            Need.CLEAN_SAMPLES,
            Need.TRIGGER,
            Need.CLEAN_TWIN,
            Need.TEST_DATA,
        },
        presets={"backdoorbench": {"norm": "l1", "after_norm": False}},
    )


@hookimpl
def backdoorkit_published_tables() -> Iterable[PublishedTable]:
    """Table 1 of the paper."""
    yield PublishedTable(name="tsbd-table1", resource="backdoorkit_tsbd:tsbd-table1.toml")
