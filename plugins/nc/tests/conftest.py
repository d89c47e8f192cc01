"""The network whose backdoor is written down by hand, and how long to search its trigger."""

from __future__ import annotations

import pytest

from backdoorkit.testing import (
    PLANTED_CLASSES,
    PLANTED_SHAPE,
    PlantedNetwork,
    planted_context,
    planted_images,
    planted_success,
)


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
