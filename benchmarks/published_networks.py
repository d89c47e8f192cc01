"""Networks of published checkpoints that the catalogue does not have, for ``--model callable``.

    PYTHONPATH=benchmarks backdoorkit run -f recipes/published-checkpoint.toml \\
        --set model.name=callable --set model.target=published_networks:small_vgg ...

Module names are those of the files' tensors.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ResNet20", "SmallVGG", "small_vgg"]


class SmallVGG(nn.Module):
    """The network of the I-BAU authors: pairs of 3x3 convolutions with batch norm and ELU."""

    def __init__(self, features: nn.Sequential, classifier: nn.Linear) -> None:
        super().__init__()
        self.features, self.classifier = features, classifier

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N x K) of 32 x 32 images."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def small_vgg(num_classes: int) -> SmallVGG:
    """Three halvings with 32, 64 and 128 channels, dropout after each."""
    layers: list[nn.Module] = []
    before = 3
    for channels, drop in ((32, 0.3), (64, 0.4), (128, 0.4)):
        for _ in range(2):
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels)]
            layers.append(nn.ELU())
            before = channels
        layers += [nn.MaxPool2d(2), nn.Dropout(drop)]
    return SmallVGG(nn.Sequential(*layers), nn.Linear(2048, num_classes))


class _Block(nn.Module):
    """Two convolutions; the skip is subsampled and padded with channels of zeros."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.missing = (channels - before) // 2

    def forward(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(images)))))
        if self.missing:
            images = images[:, :, ::2, ::2]
            images = functional.pad(images, (0, 0, 0, 0, self.missing, self.missing))
        return functional.relu(hidden + images)


class ResNet20(nn.Module):
    """CIFAR ResNet with 6 x 3 + 2 layers and skips without parameters."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(_Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(_Block(16, 32, 2), _Block(32, 32, 1), _Block(32, 32, 1))
        self.layer3 = nn.Sequential(_Block(32, 64, 2), _Block(64, 64, 1), _Block(64, 64, 1))
        self.linear = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N x K)."""
        features = functional.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.linear(features.mean((2, 3)))
        return logits
