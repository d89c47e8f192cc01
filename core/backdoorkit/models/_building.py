"""What the architectures share: initial weights, pooling, and refusing what cannot work."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backdoorkit.errors import InputError

__all__ = [
    "check_logits",
    "conv3x3",
    "global_average",
    "initialize",
    "require_images",
    "size_text",
]


def size_text(image_shape: tuple[int, int, int]) -> str:
    """``3 x 32 x 32``."""
    return " x ".join(map(str, image_shape))


def require_images(
    name: str, image_shape: tuple[int, int, int], num_classes: int, *, least: int
) -> None:
    """Refuse images whose shorter side is below ``least`` pixels, and fewer than two classes.

    Raises
    ------
    InputError
        naming the architecture and the sizes.

    """
    channels, height, width = image_shape
    if channels < 1 or min(height, width) < least:
        raise InputError(
            f"{name} takes images of at least 1 x {least} x {least} (C x H x W), not "
            f"{size_text(image_shape)}; use larger images or a smaller architecture"
        )
    if num_classes < 2:
        raise InputError(f"{name} needs at least 2 classes, not {num_classes}")


def conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the resolution at stride 1, without bias."""
    return nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)


def global_average(features: Tensor) -> Tensor:
    """N x C x H x W to N x C."""
    return features.mean(dim=(2, 3))


def initialize(network: nn.Module) -> None:
    """Initial weights of a convolutional network with ReLU (He et al., 2015, fan-out).

    Norms keep torch's own (scale 1, shift 0), linear layers too but for their biases, which are 0.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def check_logits(
    network: nn.Module, image_shape: tuple[int, int, int], num_classes: int, what: str
) -> None:
    """Run two black images through a foreign network and look at what comes out.

    Random state and weights stay as they are, and the network is left in training mode.

    Raises
    ------
    InputError
        where ``what`` fails on such images, or returns anything but N x K logits.

    """
    network.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            logits = network(torch.zeros(2, *image_shape))
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{what} fails on images of {size_text(image_shape)}: {reason}; "
            "use images of another size or another architecture"
        ) from error
    finally:
        network.train()
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (2, num_classes):
        raise InputError(
            f"{what} must return logits of shape (2, {num_classes}) for 2 images of "
            f"{num_classes} classes, not {shape}"
        )
