"""VGG-19 with batch norms and a single linear layer, as used on small images."""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn

from backdoorkit.contracts import Architecture
from backdoorkit.models._building import global_average, initialize, require_images
from backdoorkit.models.catalog import FixedConfig

__all__ = ["VGG", "VGG19"]

#: (channels, convolutions) of each resolution; configuration E of the paper
_STAGES: Final = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))


class VGG(nn.Module):
    """Sixteen conv-BN-ReLU with five poolings between them, global average, one linear layer.

    Poolings round up, so that images below 32 pixels, and sizes such as 28, pass through; at
    multiples of 32 this is the usual network.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, convolutions in _STAGES:
            for _ in range(convolutions):
                convolution = nn.Conv2d(in_channels, channels, 3, padding=1)
                layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
                in_channels = channels
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(in_channels, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N x K)."""
        logits: Tensor = self.classifier(global_average(self.features(images)))
        return logits


class VGG19(Architecture[FixedConfig]):
    """Simonyan, Zisserman: Very deep convolutional networks, ICLR 2015; 19 layers, with norms."""

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> VGG:
        """The network, for images of 8 pixels at least."""
        require_images("vgg-19-bn", image_shape, num_classes, least=8)
        return VGG(image_shape[0], num_classes)
