"""ResNet with the stem for small images: one 3x3 convolution of stride 1, no pooling."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from backdoorkit.contracts import Architecture
from backdoorkit.models._building import conv3x3, global_average, initialize, require_images
from backdoorkit.models.catalog import ResNetConfig

__all__ = ["ResNet", "ResNet18", "ResNet34"]


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, a skip, and a ReLU after their sum."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, features: Tensor) -> Tensor:
        hidden = functional.relu(self.bn1(self.conv1(features)))
        return functional.relu(self.bn2(self.conv2(hidden)) + self.shortcut(features))


class ResNet(nn.Module):
    """Four stages of basic blocks with ``width``, 2, 4 and 8 times ``width`` channels."""

    def __init__(
        self, depths: tuple[int, int, int, int], width: int, in_channels: int, num_classes: int
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, depths[0], stride=1)
        self.layer2 = _stage(width, 2 * width, depths[1], stride=2)
        self.layer3 = _stage(2 * width, 4 * width, depths[2], stride=2)
        self.layer4 = _stage(4 * width, 8 * width, depths[3], stride=2)
        self.linear = nn.Linear(8 * width, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N x K)."""
        features = functional.relu(self.bn1(self.conv1(images)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
        logits: Tensor = self.linear(global_average(features))
        return logits


def _stage(in_channels: int, channels: int, depth: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(depth - 1)))


class ResNet18(Architecture[ResNetConfig]):
    """He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016; 18 layers."""

    name: ClassVar[str] = "resnet-18"
    depths: ClassVar[tuple[int, int, int, int]] = (2, 2, 2, 2)

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> ResNet:
        """The network; its three halvings need images of 8 pixels at least."""
        require_images(self.name, image_shape, num_classes, least=8)
        return ResNet(self.depths, self.config.width, image_shape[0], num_classes)


class ResNet34(ResNet18):
    """The same with 34 layers."""

    name = "resnet-34"
    depths = (3, 4, 6, 3)
