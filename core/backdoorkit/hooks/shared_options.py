"""Options that many methods share, so that they are called the same everywhere."""

from __future__ import annotations

import enum
from typing import Literal

import attrs

from backdoorkit.hooks.options import option

__all__ = ["LabelMapping", "PoisonOptions", "RateBasis", "Selection", "TrainOptions"]


class LabelMapping(enum.StrEnum):
    """Which label a triggered image is to get; independent of the trigger."""

    #: every triggered image becomes ``target``
    ALL_TO_ONE = "all-to-one"
    #: class y becomes (y + 1) mod K
    ALL_TO_ALL = "all-to-all"


class RateBasis(enum.StrEnum):
    """What ``poison_rate`` is a share of, and where the poisoned samples are drawn from."""

    #: share of all samples, drawn from all of them (BackdoorBench, ABL)
    ALL = "all"
    #: share of all samples, drawn from the target class only (BackdoorBench's clean-label attacks)
    ALL_WITHIN_TARGET = "all-within-target"
    #: share of the target class, drawn from it (clean-label papers)
    TARGET_CLASS = "target-class"
    #: share of the samples that are not of the target class, drawn from them (ANP's code)
    NON_TARGET = "non-target"


class Selection(enum.StrEnum):
    """How a defense chooses its level (pruning threshold, ratio, t)."""

    #: the value in the configuration
    FIXED = "fixed"
    #: the strongest level that the clean reserve's held-out part allows
    CLEAN = "clean"
    #: the level with the lowest test attack success: cheating, for reproducing tables only
    ORACLE = "oracle"


@attrs.frozen(kw_only=True)
class PoisonOptions:
    """Base of the attacks' configurations: who is poisoned, and with which label."""

    poison_rate: float = option(
        0.1, ge=0, le=1, symbol="ρ", help="Share of the rate basis that is poisoned."
    )
    rate_basis: RateBasis = option(
        RateBasis.ALL, help="What the rate is a share of and where samples are drawn from."
    )
    label_map: LabelMapping = option(
        LabelMapping.ALL_TO_ONE, help="Which label a triggered image is to get."
    )
    target: int = option(0, ge=0, symbol="t", help="Target class of the all-to-one map.")


@attrs.frozen(kw_only=True)
class TrainOptions:
    """How a model is trained; one loop in the core carries it out for every method."""

    epochs: int = option(20, ge=0, help="Passes over the training set.")
    batch_size: int = option(128, ge=1, help="Images per step.")
    optimizer: Literal["sgd", "adam"] = option("sgd", help="Optimizer.")
    learning_rate: float = option(0.1, ge=0, help="Peak learning rate.")
    momentum: float = option(0.9, ge=0, lt=1, help="SGD momentum (Adam: first beta).")
    nesterov: bool = option(False, help="Nesterov momentum.")
    weight_decay: float = option(5e-4, ge=0, help="L2 penalty, added to the gradient.")
    schedule: Literal["constant", "cosine", "one-cycle", "step"] = option(
        "one-cycle",
        help="Learning rate over time: cosine to zero over all epochs; one-cycle with a linear "
        "rise over the first quarter and fall to zero; step divides by ten at the milestones.",
    )
    milestones: tuple[float, ...] = option(
        (0.5, 0.75), ge=0, le=1, help="Where the step schedule drops, as shares of all epochs."
    )
    crop_padding: int = option(0, ge=0, help="Random crop after zero padding by this many pixels.")
    horizontal_flip: bool = option(False, help="Mirror half of the images, chosen at random.")
    label_smoothing: float = option(0.0, ge=0, lt=1, help="Label smoothing.")
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto",
        help="Arithmetic of the forward and backward pass; auto is bfloat16 where the hardware "
        "has it. Weights stay float32.",
    )
    compile: bool = option(False, help="Compile the model with torch.compile first.")
