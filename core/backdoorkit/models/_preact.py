"""Pre-activation ResNet with the stem for small images, as the backdoor benchmarks use it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from backdoorkit.contracts import Architecture
from backdoorkit.models._building import conv3x3, global_average, initialize, require_images
from backdoorkit.models.catalog import PreActResNetConfig

__all__ = ["PreActResNet", "PreActResNet18"]


class PreActBlock(nn.Module):
    """BN-ReLU-conv twice; a projection, where there is one, takes the activated input."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            )

    def forward(self, features: Tensor) -> Tensor:
        activated = functional.relu(self.bn1(features))
        skip = self.shortcut(activated) if len(self.shortcut) else features
        hidden = self.conv1(activated)
        summed: Tensor = self.conv2(functional.relu(self.bn2(hidden))) + skip
        return summed


class PreActResNet(nn.Module):
    """Four stages of two pre-activation blocks.

    Unless ``final_norm`` is set, nothing follows the last block's sum: what is pooled is signed.
    """

    def __init__(self, width: int, in_channels: int, num_classes: int, *, final_norm: bool) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width)
        self.layer1 = _stage(width, width, stride=1)
        self.layer2 = _stage(width, 2 * width, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, stride=2)
        self.layer4 = _stage(4 * width, 8 * width, stride=2)
        self.bn = nn.BatchNorm2d(8 * width) if final_norm else None
        self.linear = nn.Linear(8 * width, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N x K)."""
        features = self.conv1(images)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
        if self.bn is not None:
            features = functional.relu(self.bn(features))
        logits: Tensor = self.linear(global_average(features))
        return logits


def _stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        PreActBlock(in_channels, channels, stride), PreActBlock(channels, channels, 1)
    )


class PreActResNet18(Architecture[PreActResNetConfig]):
    """He, Zhang, Ren, Sun: Identity mappings in deep residual networks, ECCV 2016; 18 layers.

    The default lacks the paper's last BN and ReLU, as do the CIFAR code that the backdoor
    benchmarks took over and therefore the weights they publish; ``final_norm`` adds them.
    """

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> PreActResNet:
        """The network; its three halvings need images of 8 pixels at least."""
        require_images("preact-resnet-18", image_shape, num_classes, least=8)
        return PreActResNet(
            self.config.width, image_shape[0], num_classes, final_norm=self.config.final_norm
        )
