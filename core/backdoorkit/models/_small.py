"""A plain convolutional network, small enough for a laptop's processor."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from backdoorkit.contracts import Architecture
from backdoorkit.models._building import conv3x3, global_average, initialize, require_images
from backdoorkit.models.catalog import SmallCNNConfig

__all__ = ["SmallCNN", "SmallCNNArchitecture"]


class ConvStage(nn.Module):
    """conv-BN-ReLU twice, at one resolution."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, features: Tensor) -> Tensor:
        hidden = functional.relu(self.bn1(self.conv1(features)))
        return functional.relu(self.bn2(self.conv2(hidden)))


class SmallCNN(nn.Module):
    """Stages with ``width``, 2, 4... times ``width`` channels, max-pooling between them."""

    def __init__(self, width: int, stages: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        widths = [width * 2**stage for stage in range(stages)]
        inputs = [in_channels, *widths[:-1]]
        self.stages = nn.ModuleList(
            ConvStage(before, after) for before, after in zip(inputs, widths, strict=True)
        )
        self.linear = nn.Linear(widths[-1], num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N x K)."""
        features = self.stages[0](images)
        for stage in list(self.stages)[1:]:
            features = stage(functional.max_pool2d(features, 2))
        logits: Tensor = self.linear(global_average(features))
        return logits


class SmallCNNArchitecture(Architecture[SmallCNNConfig]):
    """The framework's own: two conv-BN-ReLU per resolution, global average, one linear layer."""

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> SmallCNN:
        """The network; each stage after the first halves the image, which must leave a pixel."""
        stages = self.config.stages
        name = f"small-cnn with {stages} stages"
        require_images(name, image_shape, num_classes, least=2 ** (stages - 1))
        return SmallCNN(self.config.width, stages, image_shape[0], num_classes)
