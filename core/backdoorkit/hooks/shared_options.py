"""Options that many methods share, so that they are called the same everywhere."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, ClassVar, Literal

import attrs

from backdoorkit.hooks.options import option

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "IndexPolicy",
    "LabelMapping",
    "PoisonOptions",
    "RateBasis",
    "Selection",
    "TrainOptions",
]


class LabelMapping(enum.StrEnum):
    """Which label a triggered image is to get; independent of the trigger."""

    #: every triggered image becomes ``target``
    ALL_TO_ONE = "all-to-one"
    #: class y becomes (y + 1) mod K
    ALL_TO_ALL = "all-to-all"
    #: only images of ``source_classes`` become ``target``; no others are attacked
    SOURCE_SPECIFIC = "source-specific"


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
    #: share of the samples of the source classes, drawn from them
    SOURCE_CLASSES = "source-classes"
    #: share of all samples; poisoned copies are added, and the originals stay (ISSBA's code)
    APPEND = "append"


class IndexPolicy(enum.StrEnum):
    """When it is decided which samples are poisoned."""

    #: once, before the training: a poisoned training set
    FIXED = "fixed"
    #: in every step, the first samples of the shuffled batch: the attacker controls the training
    PER_BATCH = "per-batch"


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
    """Base of the attacks' configurations: who is poisoned, when, and with which label."""

    #: whether the attack makes covers of its own sort (:meth:`backdoorkit.api.Attack.cover`);
    #: otherwise a cover is a triggered image of a class that is not attacked
    own_covers: ClassVar[bool] = False

    poison_rate: float = option(
        0.1, ge=0, le=1, symbol="ρ", help="Share of the rate basis that is poisoned."
    )
    rate_basis: RateBasis = option(
        RateBasis.ALL, help="What the rate is a share of and where samples are drawn from."
    )
    label_map: LabelMapping = option(
        LabelMapping.ALL_TO_ONE, help="Which label a triggered image is to get."
    )
    target: int = option(
        0, ge=0, symbol="t", help="Target class of the all-to-one and source-specific maps."
    )
    index_policy: IndexPolicy = option(
        IndexPolicy.FIXED,
        help="Poisoned samples are drawn once, or anew in every batch, which takes control of the "
        "training.",
    )
    cover_ratio: float = option(
        0.0,
        ge=0,
        help="Covers for each poisoned sample: altered by the attacker under their true label.",
    )
    source_classes: tuple[int, ...] = option(
        (), ge=0, help="The classes that a source-specific map attacks."
    )

    @property
    def controls_training(self) -> bool:
        """Whether the victim is trained by the attacker, not merely on the attacker's images.

        Attacks whose training is controlled for another reason override it.
        """
        return self.index_policy is IndexPolicy.PER_BATCH

    @source_classes.validator
    def _check_combination(
        self, _: attrs.Attribute[tuple[int, ...]], sources: tuple[int, ...]
    ) -> None:
        """Parts that contradict each other; a derived class may have its own checks as usual."""
        for fault in _contradictions(self, sources):
            raise ValueError(fault)


def _contradictions(options: PoisonOptions, sources: tuple[int, ...]) -> Iterator[str]:
    specific = options.label_map is LabelMapping.SOURCE_SPECIFIC
    basis = options.rate_basis
    if specific and not sources:
        yield "label_map 'source-specific' needs source_classes"
    if sources and not specific:
        yield f"source_classes go with label_map 'source-specific', not {options.label_map.value!r}"
    if options.target in sources:
        yield f"source_classes must not hold the target {options.target}"
    if len(set(sources)) < len(sources):
        yield f"source_classes must differ from each other, not {list(sources)}"
    if basis is RateBasis.SOURCE_CLASSES and not specific:
        yield "rate_basis 'source-classes' goes with label_map 'source-specific'"
    if specific and basis in (RateBasis.TARGET_CLASS, RateBasis.ALL_WITHIN_TARGET):
        yield f"rate_basis {basis.value!r} poisons the target class, which is no source class"
    if options.cover_ratio and not (specific or options.own_covers):
        yield (
            "cover_ratio goes with label_map 'source-specific': a trigger under the true label "
            "would undo this attack"
        )
    if basis is RateBasis.APPEND and options.index_policy is IndexPolicy.PER_BATCH:
        yield "rate_basis 'append' makes a training set, so it goes with index_policy 'fixed'"


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
