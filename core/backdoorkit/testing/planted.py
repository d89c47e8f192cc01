"""A network whose backdoor is written down by hand, so that every answer is known, untrained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoorkit.context import Context
from backdoorkit.data.images import ImageSet

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "PLANTED_CLASSES",
    "PLANTED_SHAPE",
    "PlantedNetwork",
    "planted_context",
    "planted_images",
    "planted_success",
]

#: number of classes K; as many units look for a row each, and one more for the trigger
PLANTED_CLASSES: Final = 8
#: C, H, W
PLANTED_SHAPE: Final = (1, 8, 8)


class PlantedNetwork(nn.Module):
    """Unit k looks for row k and votes for class k; the last looks for a lit corner and votes 0.

    Every image of :func:`planted_images` is classified rightly; with its lower right 2 x 2 corner
    at 1 it is called class 0. Without the last unit nothing of that is left. The softplus lets a
    gradient through where the corner is dark: a ReLU would hide the trigger from those who search.

    Parameters
    ----------
    vote:
        Weight of the last unit for class 0; 0 is the clean twin.

    """

    def __init__(self, vote: float = 30.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, PLANTED_CLASSES + 1, PLANTED_SHAPE[1])
        self.head = nn.Linear(PLANTED_CLASSES + 1, PLANTED_CLASSES)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            for row in range(PLANTED_CLASSES):
                self.conv.weight[row, 0, row, :6] = 1 / 6
                self.head.weight[row, row] = 10
            self.conv.weight[-1, 0, -2:, -2:] = 1
            assert self.conv.bias is not None
            self.conv.bias[-1] = -2
            self.head.weight[0, -1] = vote

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N x K)."""
        logits: Tensor = self.head(functional.softplus(self.conv(images), beta=8).flatten(1))
        return logits


def planted_images(count: int, *, seed: int = 0) -> ImageSet:
    """Clean images: faint noise, with the row of their class lit; the classes take turns."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % PLANTED_CLASSES
    images = 0.35 * torch.rand(count, *PLANTED_SHAPE, generator=generator)
    images[torch.arange(count), 0, labels, :6] += 0.4
    return ImageSet.from_tensors((images * 255).round().to(torch.uint8), labels)


def planted_success(model: nn.Module) -> float:
    """Share of fresh images of the other classes that a lit corner makes class 0."""
    test = planted_images(160, seed=1)
    images = test.images.float() / 255
    images[..., -2:, -2:] = 1
    with torch.no_grad():
        predicted = model(images[test.labels != 0]).argmax(dim=1)
    return float((predicted == 0).float().mean())


def planted_context(method: str, *, oracle: Callable[[nn.Module], float] | None = None) -> Context:
    """What a method is given beside its task, on such images."""
    return Context(
        method=method,
        seed=0,
        device=torch.device("cpu"),
        image_shape=PLANTED_SHAPE,
        num_classes=PLANTED_CLASSES,
        precision="float32",
        oracle=oracle,
    )
