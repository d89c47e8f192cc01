"""A network whose backdoor is written down by hand, so that every answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from backdoorkit.api import Context, ImageSet

CLASSES = 8
SHAPE = (1, 8, 8)


class Planted(nn.Module):
    """Unit k looks for row k and votes for class k; the last looks for a lit corner and votes 0.

    Its softplus lets a gradient through where the corner is dark; a ReLU would hide the trigger.
    """

    def __init__(self, vote: float = 30.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, CLASSES + 1, 8)
        self.head = nn.Linear(CLASSES + 1, CLASSES)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            for row in range(CLASSES):
                self.conv.weight[row, 0, row, :6] = 1 / 6
                self.head.weight[row, row] = 10
            self.conv.weight[CLASSES, 0, -2:, -2:] = 1
            self.conv.bias[CLASSES] = -2
            self.head.weight[0, CLASSES] = vote

    def forward(self, images):
        return self.head(functional.softplus(self.conv(images), beta=8).flatten(1))


def planted_images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    images = 0.35 * torch.rand(count, *SHAPE, generator=generator)
    images[torch.arange(count), 0, labels, :6] += 0.4
    return ImageSet.from_tensors((images * 255).round().to(torch.uint8), labels)


def planted_context():
    return Context(
        method="nc",
        seed=0,
        device=torch.device("cpu"),
        image_shape=SHAPE,
        num_classes=CLASSES,
        precision="float32",
    )


class PlantedWorld:
    """What the tests need of it."""

    classes = CLASSES
    shape = SHAPE
    #: enough steps for every class to find its trigger
    quick = {"inversion_steps": 150, "inversion_batches": 2}  # noqa: RUF012
    model = Planted
    images = staticmethod(planted_images)
    context = staticmethod(planted_context)

    @staticmethod
    def attack_success(model):
        test = planted_images(160, seed=1)
        images = test.images.float() / 255
        images[..., -2:, -2:] = 1
        with torch.no_grad():
            predicted = model(images[test.labels != 0]).argmax(dim=1)
        return float((predicted == 0).float().mean())


@pytest.fixture(scope="session")
def planted():
    return PlantedWorld
