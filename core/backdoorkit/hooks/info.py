"""What a plugin says about a method, without importing the method."""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["ALLOWED_NEEDS", "ATTACK_NEEDS", "Kind", "MethodInfo", "Need", "Stage"]


class Kind(enum.StrEnum):
    """What a method is. Given by the hook that returned it, so a plugin cannot mislabel itself."""

    ATTACK = "attack"
    DEFENSE = "defense"
    DETECTOR = "detector"
    #: an experimenter's tool: looks at a victim with the truth about its attack in hand
    ANALYSIS = "analysis"
    METRIC = "metric"
    DATASET = "dataset"
    MODEL = "model"
    EXECUTOR = "executor"
    #: watches a run, such as a log
    OBSERVER = "observer"


class Stage(enum.StrEnum):
    """Where in the life cycle of a model a method acts."""

    DATA = "data"
    TRAINING = "training"
    POST_TRAINING = "post-training"
    INFERENCE = "inference"


class Need(enum.StrEnum):
    """What a method must be given. It receives exactly what it declares and nothing else."""

    #: the model itself: parameters, buffers, gradients
    WEIGHTS = "weights"
    #: the defender's small clean reserve, taken from the training split
    CLEAN_SAMPLES = "clean-samples"
    #: the (possibly poisoned) training set, without any word on which samples are poisoned
    TRAINING_DATA = "training-data"
    #: the right to train a model from scratch with a loop of its own
    TRAINING_CONTROL = "training-control"
    #: logits for images of the method's choosing, without access to the weights
    QUERIES = "queries"
    #: per-sample logits and labels on test data (metrics only)
    PREDICTIONS = "predictions"
    #: the same for the model before the defense (metrics only)
    BASELINE_PREDICTIONS = "baseline-predictions"
    #: detectors' scores with the truth about them (metrics that rate detectors, and only they)
    VERDICTS = "verdicts"
    #: which training samples the attacker altered (metrics and analyses only)
    POISON_RECORD = "poison-record"
    #: the attack's trigger, to be planted on any images (analyses only)
    TRIGGER = "trigger"
    #: the model that the same recipe trains on the same data without the attack (analyses only)
    CLEAN_TWIN = "clean-twin"
    #: test images and their labels (analyses; attacks on chosen images)
    TEST_DATA = "test-data"


_DEFENDER = frozenset(
    {Need.WEIGHTS, Need.CLEAN_SAMPLES, Need.TRAINING_DATA, Need.TRAINING_CONTROL, Need.QUERIES}
)

#: What only somebody can have who made the attack: an analysis that needs it is left out where
#: there is no attack.
ATTACK_NEEDS: Final = frozenset({Need.TRIGGER, Need.POISON_RECORD, Need.CLEAN_TWIN})

#: What each kind may ask for. A defense that declares the poison record is refused when loaded.
ALLOWED_NEEDS: Final[Mapping[Kind, frozenset[Need]]] = {
    # Test data: for attacks on chosen images, which no attacker could choose otherwise; recorded.
    Kind.ATTACK: frozenset({Need.TRAINING_DATA, Need.TRAINING_CONTROL, Need.TEST_DATA}),
    Kind.DEFENSE: _DEFENDER,
    Kind.DETECTOR: _DEFENDER,
    Kind.ANALYSIS: _DEFENDER | ATTACK_NEEDS | {Need.TEST_DATA},
    Kind.METRIC: frozenset(
        {Need.PREDICTIONS, Need.BASELINE_PREDICTIONS, Need.POISON_RECORD, Need.VERDICTS}
    ),
    Kind.DATASET: frozenset(),
    Kind.MODEL: frozenset(),
    Kind.EXECUTOR: frozenset(),
    Kind.OBSERVER: frozenset(),
}

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def _check_name(_: object, __: object, value: Any) -> None:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(
            f"method name {value!r} must be lower-case words joined by '-', such as 'fine-pruning'"
        )


def _check_target(_: object, __: object, value: Any) -> None:
    if not isinstance(value, str) or not _TARGET.fullmatch(value):
        raise ValueError(f"implementation {value!r} must read 'package.module:Class'")


def _frozen(needs: Iterable[Need]) -> frozenset[Need]:
    return frozenset(needs)


def _check_config(_: object, __: object, value: Any) -> None:
    if not (isinstance(value, type) and attrs.has(value)):
        raise ValueError(f"config {value!r} must be a frozen attrs class")


@attrs.frozen(kw_only=True)
class MethodInfo:
    """Everything that listing, help, schema and validation need to know of a method.

    The record lives in the plugin's light module: making it must not import torch.
    ``implementation`` is imported only when the method runs.
    """

    name: str = attrs.field(validator=_check_name)
    #: one line for listings, starting with a capital and ending with a full stop
    summary: str = attrs.field(validator=attrs.validators.instance_of(str))
    #: the paper: authors, title, venue, year
    reference: str = attrs.field(default="", validator=attrs.validators.instance_of(str))
    #: ``"package._module:Class"``
    implementation: str = attrs.field(validator=_check_target)
    #: frozen attrs class made of :func:`backdoorkit.option` fields: the one source of the command
    #: line's options, the recipe's keys, the JSON Schema and the documentation's table
    config: type = attrs.field(validator=_check_config)
    stage: Stage | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.instance_of(Stage))
    )
    needs: frozenset[Need] = attrs.field(default=frozenset(), converter=_frozen)
    #: named sets of option values (``paper``, ``official``, ``backdoorbench``...), each merged
    #: under what the user gives
    presets: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
