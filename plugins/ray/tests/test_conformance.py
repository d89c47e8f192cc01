"""The executor keeps the contract that all methods keep."""

from __future__ import annotations

from backdoorkit.hooks.info import Kind
from backdoorkit.hooks.registry import load_registry
from backdoorkit.testing import run_checks


def test_ray_keeps_the_contract():
    registry = load_registry(allow=["ray"])
    outcomes = list(run_checks(registry, registry.find("ray", Kind.EXECUTOR)))
    assert [str(outcome) for outcome in outcomes if outcome.failed] == []
    assert sum(outcome.status == "passed" for outcome in outcomes) >= 10
