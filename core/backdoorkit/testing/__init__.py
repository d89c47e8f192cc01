"""The conformance kit: what every method of a kind must keep, as tests and as a command.

A plugin subclasses a suite (it needs pytest)::

    from backdoorkit.testing import DefenseSuite

    class TestMine(DefenseSuite):
        method = "mine"
        config = {"epochs": 1}

``backdoorkit plugins check mine`` runs the same checks. They hold a method to the contract, not
to its paper's numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backdoorkit.testing.checks import CheckOutcome, CheckStatus, checks_for, run_checks
from backdoorkit.testing.cutting import MemorySlot, TrainingCutError
from backdoorkit.testing.digits import (
    DigitNetwork,
    digit_images,
    digit_network,
    flattening_digit_network,
)
from backdoorkit.testing.light import NoOptions, light_method, light_plugin
from backdoorkit.testing.planted import (
    PLANTED_CLASSES,
    PLANTED_SHAPE,
    PlantedNetwork,
    planted_context,
    planted_images,
    planted_success,
)
from backdoorkit.testing.tiny import (
    PatchTrigger,
    TinyVictim,
    tiny_context,
    tiny_images,
    tiny_lesson,
    tiny_network,
    tiny_twin,
    tiny_victim,
)

if TYPE_CHECKING:
    from backdoorkit.testing.suites import (
        AnalysisSuite,
        AttackSuite,
        DatasetSuite,
        DefenseSuite,
        DetectorSuite,
        MetricSuite,
        ModelSuite,
    )

__all__ = [
    "PLANTED_CLASSES",
    "PLANTED_SHAPE",
    "AnalysisSuite",
    "AttackSuite",
    "CheckOutcome",
    "CheckStatus",
    "DatasetSuite",
    "DefenseSuite",
    "DetectorSuite",
    "DigitNetwork",
    "MemorySlot",
    "MetricSuite",
    "ModelSuite",
    "NoOptions",
    "PatchTrigger",
    "PlantedNetwork",
    "TinyVictim",
    "TrainingCutError",
    "checks_for",
    "digit_images",
    "digit_network",
    "flattening_digit_network",
    "light_method",
    "light_plugin",
    "planted_context",
    "planted_images",
    "planted_success",
    "run_checks",
    "tiny_context",
    "tiny_images",
    "tiny_lesson",
    "tiny_network",
    "tiny_twin",
    "tiny_victim",
]


def __getattr__(name: str) -> Any:
    # The suites need pytest, which the command `plugins check` must do without.
    if name.endswith("Suite") and name in __all__:
        from backdoorkit.testing import suites

        return getattr(suites, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
