"""A tiny victim learns the trigger."""

from __future__ import annotations

from backdoorkit.testing import tiny_lesson
from backdoorkit_lf import LFConfig
from backdoorkit_lf._attack import LF


def test_the_victim_learns_the_dome_and_nothing_else_changes():
    accuracy, success = tiny_lesson(LF(LFConfig()), "lf", epochs=6)
    assert min(accuracy) > 0.95
    assert success > 0.9
