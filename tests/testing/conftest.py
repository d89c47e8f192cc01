"""Registers methods that tests define, as a plugin would offer them."""

from __future__ import annotations

import sys
import types

import attrs
import pytest

from backdoorkit import Kind, MethodInfo, Need, PoisonOptions, Stage, hookimpl, option
from backdoorkit.hooks.registry import Registry
from backdoorkit.testing import run_checks

HOOKS = {
    Kind.ATTACK: "backdoorkit_attacks",
    Kind.DEFENSE: "backdoorkit_defenses",
    Kind.DETECTOR: "backdoorkit_detectors",
    Kind.ANALYSIS: "backdoorkit_analyses",
    Kind.METRIC: "backdoorkit_metrics",
    Kind.DATASET: "backdoorkit_datasets",
    Kind.MODEL: "backdoorkit_models",
}


@attrs.frozen(kw_only=True)
class Config:
    rounds: int = option(1, ge=1, le=5, help="How often.")


@attrs.frozen(kw_only=True)
class AttackConfig(PoisonOptions):
    rounds: int = option(1, ge=1, le=5, help="How often.")


DEFENDER = frozenset({Need.WEIGHTS, Need.CLEAN_SAMPLES})
NEEDS = {Kind.DEFENSE: DEFENDER, Kind.DETECTOR: DEFENDER, Kind.METRIC: {Need.PREDICTIONS}}


@pytest.fixture
def outcomes(monkeypatch):
    """The checks' outcomes by title, for one class as the implementation of a method."""

    def check(kind, made_by, values=None, **facts):
        module = types.ModuleType("implementations_under_check")
        module.Implementation = made_by
        monkeypatch.setitem(sys.modules, module.__name__, module)
        info = MethodInfo(
            **{
                "name": "subject",
                "summary": "A method under check.",
                "reference": "Nobody: Nothing, Nowhere, 2024",
                "implementation": f"{module.__name__}:Implementation",
                "config": AttackConfig if kind is Kind.ATTACK else Config,
                "stage": Stage.DATA,
                "needs": NEEDS.get(kind, frozenset()),
            }
            | facts
        )
        plugin = types.ModuleType("plugin_under_check")
        setattr(plugin, HOOKS[kind], hookimpl(lambda: [info], specname=HOOKS[kind]))
        registry = Registry()
        registry.register(plugin)
        method = registry.find("subject", kind)
        return {outcome.check: outcome for outcome in run_checks(registry, method, values)}

    return check
