"""Scikit-learn's handwritten digits and two networks that learn them in seconds: for tests of what
a method does, not only that it keeps its contract.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoorkit.data.images import ImageSet

__all__ = ["DigitNetwork", "digit_images", "digit_network", "flattening_digit_network"]


class DigitNetwork(nn.Module):
    """Two conv-BN pairs, pooling, 32 features, a linear head; 1 x 8 x 8 in, ten classes out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N x 10)."""
        features = self.bn1(self.conv1(images)).relu()
        features = self.bn2(self.conv2(functional.max_pool2d(features, 2))).relu()
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def digit_network(seed: int = 0) -> DigitNetwork:
    """An untrained one; its initial weights follow the seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return DigitNetwork()


def flattening_digit_network() -> nn.Sequential:
    """An untrained network whose head sees where in the image a feature is."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 16, 10),
        )


def digit_images() -> tuple[ImageSet, ImageSet]:
    """1,437 images to train on, and every fifth of all, 360, to test with."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16 * 255).round().to(torch.uint8).view(-1, 1, 8, 8)
    is_test = torch.arange(len(labels)) % 5 == 0
    train, test = (
        ImageSet.from_tensors(images[part], torch.tensor(labels[part]).long(), num_classes=10)
        for part in (~is_test, is_test)
    )
    return train, test
