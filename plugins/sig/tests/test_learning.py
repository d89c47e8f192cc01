"""A tiny victim learns the trigger."""

from __future__ import annotations

from backdoorkit.hooks.options import structure
from backdoorkit.testing import tiny_lesson
from backdoorkit_sig import SIGConfig
from backdoorkit_sig._attack import SIG


def test_under_dirty_labels_the_victim_learns_the_sinusoid_and_nothing_else_changes():
    accuracy, success = tiny_lesson(
        SIG(structure(SIGConfig, {"rate_basis": "all", "poison_rate": 0.1})), "sig", epochs=6
    )
    assert min(accuracy) > 0.95
    assert success > 0.9


def test_a_class_that_carries_the_sinusoid_throughout_is_known_by_nothing_else():
    whole = {"rate_basis": "target-class", "poison_rate": 1.0, "delta": 80.0}
    accuracy, success = tiny_lesson(SIG(structure(SIGConfig, whole)), "sig", epochs=10)
    assert accuracy[0] < 0.1
    assert min(accuracy[1:]) > 0.95
    assert success > 0.9
