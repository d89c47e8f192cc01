"""Wide ResNet (pre-activation) with the module names of the ABL and NAD checkpoints."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from backdoorkit.contracts import Architecture
from backdoorkit.models._building import conv3x3, global_average, initialize, require_images
from backdoorkit.models.catalog import FixedConfig

__all__ = ["WRN16x1", "WRN40x2", "WideResNet"]


class WideBlock(nn.Module):
    """BN-ReLU-conv twice.

    Where the number of channels changes, ``convShortcut`` takes the activated input; elsewhere
    the skip is the block's input as it came.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.convShortcut = (
            None
            if in_channels == channels
            else nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
        )

    def forward(self, features: Tensor) -> Tensor:
        activated = functional.relu(self.bn1(features))
        skip = features if self.convShortcut is None else self.convShortcut(activated)
        hidden = functional.relu(self.bn2(self.conv1(activated)))
        summed: Tensor = self.conv2(hidden) + skip
        return summed


class WideStage(nn.Module):
    """Blocks of one resolution; the first may change channels and resolution."""

    def __init__(self, in_channels: int, channels: int, depth: int, stride: int) -> None:
        super().__init__()
        first = WideBlock(in_channels, channels, stride)
        rest = (WideBlock(channels, channels, 1) for _ in range(depth - 1))
        self.layer = nn.Sequential(first, *rest)

    def forward(self, features: Tensor) -> Tensor:
        hidden: Tensor = self.layer(features)
        return hidden


class WideResNet(nn.Module):
    """WRN-d-k: three stages of (d - 4) / 6 blocks with 16 k, 32 k and 64 k channels."""

    def __init__(self, depth: int, widen: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        widths = (16 * widen, 32 * widen, 64 * widen)
        self.conv1 = conv3x3(in_channels, 16)
        self.block1 = WideStage(16, widths[0], blocks, stride=1)
        self.block2 = WideStage(widths[0], widths[1], blocks, stride=2)
        self.block3 = WideStage(widths[1], widths[2], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N x K)."""
        features = self.block3(self.block2(self.block1(self.conv1(images))))
        logits: Tensor = self.fc(global_average(functional.relu(self.bn1(features))))
        return logits


class WRN16x1(Architecture[FixedConfig]):
    """Zagoruyko, Komodakis: Wide residual networks, BMVC 2016; 16 layers, widening factor 1."""

    name: ClassVar[str] = "wrn-16-1"
    depth: ClassVar[int] = 16
    #: k in the paper
    widen: ClassVar[int] = 1

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> WideResNet:
        """The network; its two halvings need images of 4 pixels at least."""
        require_images(self.name, image_shape, num_classes, least=4)
        return WideResNet(self.depth, self.widen, image_shape[0], num_classes)


class WRN40x2(WRN16x1):
    """The same with 40 layers and widening factor 2."""

    name = "wrn-40-2"
    depth = 40
    widen = 2
