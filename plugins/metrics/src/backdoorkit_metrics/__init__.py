"""The standard metrics: ACC, ASR, RA and DER, with the rules by which images are counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from backdoorkit import MethodInfo, Need, Stage, hookimpl, option
from backdoorkit_metrics.rating import defense_effectiveness_rating

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "AccuracyConfig",
    "AttackSuccessConfig",
    "CoverAccuracyConfig",
    "DefenseEffectivenessConfig",
    "RobustAccuracyConfig",
    "backdoorkit_metrics",
    "defense_effectiveness_rating",
]

CleanRule = Literal["all", "non-target"]
TriggeredRule = Literal["non-target", "all", "conditional"]

_CLEAN_HELP = "Clean test images that count: all, or those whose class is not the target."
_TRIGGERED_HELP = (
    "Triggered test images that count: those whose true class is not the wanted one, all, or those "
    "that the model does not already put into the wanted class without the trigger."
)


@attrs.frozen(kw_only=True)
class AccuracyConfig:
    """Which clean images count."""

    rule: CleanRule = option("all", help=_CLEAN_HELP)


@attrs.frozen(kw_only=True)
class AttackSuccessConfig:
    """Which triggered images count."""

    rule: TriggeredRule = option("non-target", help=_TRIGGERED_HELP)


@attrs.frozen(kw_only=True)
class RobustAccuracyConfig:
    """Which triggered images count: as for the attack success rate."""

    rule: TriggeredRule = option("non-target", help=_TRIGGERED_HELP)


@attrs.frozen(kw_only=True)
class CoverAccuracyConfig:
    """All covers count: it has no options."""


@attrs.frozen(kw_only=True)
class DefenseEffectivenessConfig:
    """Which images count in the two rates that the rating is made of."""

    accuracy_rule: CleanRule = option("all", help=_CLEAN_HELP)
    attack_rule: TriggeredRule = option("non-target", help=_TRIGGERED_HELP)


@hookimpl
def backdoorkit_metrics() -> Iterable[MethodInfo]:
    """The four metrics of most backdoor tables, and the accuracy on covers."""
    yield MethodInfo(
        name="accuracy",
        summary="ACC: share of clean test images that are classified correctly.",
        implementation="backdoorkit_metrics._metrics:Accuracy",
        config=AccuracyConfig,
        stage=Stage.INFERENCE,
        needs={Need.PREDICTIONS},
        presets={"backdoorbench": {"rule": "all"}, "abl": {"rule": "non-target"}},
    )
    triggered_presets = {
        "backdoorbench": {"rule": "non-target"},
        "abl": {"rule": "non-target"},
        "wanet": {"rule": "all"},
        "madry": {"rule": "conditional"},
    }
    yield MethodInfo(
        name="attack-success-rate",
        summary="ASR: share of triggered test images that are classified as the attacker wants.",
        reference="Gu, Dolan-Gavitt, Garg: BadNets, arXiv:1708.06733, 2017",
        implementation="backdoorkit_metrics._metrics:AttackSuccessRate",
        config=AttackSuccessConfig,
        stage=Stage.INFERENCE,
        needs={Need.PREDICTIONS},
        presets=triggered_presets,
    )
    yield MethodInfo(
        name="robust-accuracy",
        summary="RA: share of the same triggered test images that keep their true class.",
        reference="Wu et al.: BackdoorBench, NeurIPS Datasets and Benchmarks, 2022",
        implementation="backdoorkit_metrics._metrics:RobustAccuracy",
        config=RobustAccuracyConfig,
        stage=Stage.INFERENCE,
        needs={Need.PREDICTIONS},
        presets=triggered_presets,
    )
    yield MethodInfo(
        name="cover-accuracy",
        summary="Cover ACC: share of the attacker's covers of test images that keep their true "
        "class.",
        reference="Nguyen, Tran: WaNet, ICLR 2021, and Input-Aware Dynamic Backdoor Attack, "
        "NeurIPS 2020",
        implementation="backdoorkit_metrics._metrics:CoverAccuracy",
        config=CoverAccuracyConfig,
        stage=Stage.INFERENCE,
        needs={Need.PREDICTIONS},
    )
    yield MethodInfo(
        name="defense-effectiveness-rating",
        summary="DER: half of what a defense takes from ASR, less what it costs in ACC, plus half.",
        reference="Zhu et al.: Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware "
        "Minimization, ICCV 2023",
        implementation="backdoorkit_metrics._metrics:DefenseEffectivenessRating",
        config=DefenseEffectivenessConfig,
        stage=Stage.INFERENCE,
        needs={Need.PREDICTIONS, Need.BASELINE_PREDICTIONS},
        presets={"abl": {"accuracy_rule": "non-target", "attack_rule": "non-target"}},
    )
