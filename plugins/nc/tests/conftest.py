"""The network whose backdoor is written down by hand, and triggers of given sizes."""

from __future__ import annotations

import pytest
import torch

from backdoorkit.testing import (
    PLANTED_CLASSES,
    PLANTED_SHAPE,
    PlantedNetwork,
    planted_context,
    planted_images,
    planted_success,
)
from backdoorkit_nc._inversion import Triggers


class PlantedWorld:
    """What the tests need of it."""

    classes = PLANTED_CLASSES
    shape = PLANTED_SHAPE
    #: enough steps for every class to find its trigger
    quick = {"inversion_steps": 150, "inversion_batches": 2}  # noqa: RUF012
    model = PlantedNetwork
    images = staticmethod(planted_images)
    attack_success = staticmethod(planted_success)

    @staticmethod
    def context():
        return planted_context("nc")


@pytest.fixture(scope="session")
def planted():
    return PlantedWorld


@pytest.fixture
def triggers():
    """Makes triggers with given L1 norms, which work unless it is said otherwise."""

    def make(norms, converged=None):
        count, side = len(norms), 16
        masks = torch.tensor(norms, dtype=torch.float32) / side**2
        return Triggers(
            masks=masks[:, None, None, None].expand(count, 1, side, side),
            patterns=torch.zeros(count, 3, side, side),
            success=torch.ones(count),
            converged=torch.ones(count, dtype=torch.bool) if converged is None else converged,
            steps=torch.ones(count, dtype=torch.int64),
        )

    return make
