"""A tiny victim learns the trigger."""

from __future__ import annotations

import pytest

from backdoorkit.hooks.options import structure
from backdoorkit.testing import tiny_lesson
from backdoorkit_lc import LCConfig
from backdoorkit_lc._attack import LC

SHARE = {"rate_basis": "target-class", "poison_rate": 0.8, "size": 4}
ADVERSARIAL = {"epsilon": 64.0, "step_size": 12.0, "steps": 10, "surrogate_epochs": 2}
INTERPOLATED = {"images": "interpolated", "interpolation": 0.6, "autoencoder_epochs": 40}


@pytest.mark.parametrize("config", [ADVERSARIAL, INTERPOLATED], ids=["adversarial", "interpolated"])
def test_patches_are_learned_where_the_images_are_hard(config):
    accuracy, success = tiny_lesson(LC(structure(LCConfig, SHARE | config)), "lc", epochs=10)
    assert min(accuracy) > 0.95
    assert success > 0.9


def test_patches_are_ignored_where_the_images_are_as_they_were():
    accuracy, success = tiny_lesson(
        LC(structure(LCConfig, SHARE | {"images": "plain"})), "lc", epochs=10
    )
    assert min(accuracy) > 0.95
    assert success < 0.5
