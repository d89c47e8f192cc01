"""The architectures that the core brings. Light: importing this does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from backdoorkit.hooks.hookspecs import hookimpl
from backdoorkit.hooks.info import MethodInfo
from backdoorkit.hooks.options import option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "CallableConfig",
    "FixedConfig",
    "PreActResNetConfig",
    "ResNetConfig",
    "SmallCNNConfig",
    "TorchvisionConfig",
    "ViTConfig",
    "backdoorkit_models",
]


@attrs.frozen(kw_only=True)
class FixedConfig:
    """No options: the name says it all."""


@attrs.frozen(kw_only=True)
class ResNetConfig:
    """How wide the network is."""

    width: int = option(
        64, ge=1, help="Channels of the first stage; the others have 2, 4 and 8 times as many."
    )


@attrs.frozen(kw_only=True)
class PreActResNetConfig(ResNetConfig):
    """How wide the network is, and how it ends."""

    final_norm: bool = option(
        False,
        help="Put a batch norm and a ReLU before the pooling, as in the paper. The CIFAR code of "
        "the backdoor benchmarks, and so the weights published with them, lack both.",
    )


@attrs.frozen(kw_only=True)
class SmallCNNConfig:
    """How wide and deep the network is."""

    width: int = option(
        32, ge=1, help="Channels of the first stage; they double from stage to stage."
    )
    stages: int = option(
        3, ge=1, le=6, help="Resolutions, with two convolutions each; each halves the image."
    )


@attrs.frozen(kw_only=True)
class ViTConfig:
    """Size of the transformer."""

    patch_size: int = option(4, ge=1, help="Side of a patch in pixels.")
    dim: int = option(192, ge=1, symbol="D", help="Numbers per token; a multiple of heads.")
    depth: int = option(6, ge=1, symbol="L", help="Encoder blocks.")
    heads: int = option(3, ge=1, symbol="k", help="Attention heads per block.")

    def __attrs_post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} must be a multiple of heads {self.heads}")


@attrs.frozen(kw_only=True)
class TorchvisionConfig:
    """Which of torchvision's architectures."""

    architecture: str = option(
        "resnet18",
        help="Name as in torchvision.models, such as mobilenet_v2; its weights are not downloaded.",
    )


@attrs.frozen(kw_only=True)
class CallableConfig:
    """Where the architecture's code is."""

    target: str = option(
        help="Function that makes the network, as package.module:function; it is called with "
        "num_classes, and with image_shape (C, H, W) if it has a parameter of that name."
    )

    def __attrs_post_init__(self) -> None:
        module, colon, function = self.target.partition(":")
        parts = [*module.split("."), function]
        if not colon or not all(part.isidentifier() for part in parts):
            raise ValueError(f"target must read package.module:function, not {self.target!r}")


def _info(name: str, summary: str, target: str, config: type, reference: str = "") -> MethodInfo:
    return MethodInfo(
        name=name,
        summary=summary,
        reference=reference,
        implementation=f"backdoorkit.models.{target}",
        config=config,
    )


_RESNET = "He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016"
_WRN = "Zagoruyko, Komodakis: Wide residual networks, BMVC 2016"


@hookimpl
def backdoorkit_models() -> Iterable[MethodInfo]:
    """The core's architectures, all for images from 8 pixels and any number of channels."""
    yield from _residual_networks()
    yield from _other_networks()


def _residual_networks() -> Iterable[MethodInfo]:
    yield _info(
        "preact-resnet-18",
        "Pre-activation ResNet, 18 layers, as in the backdoor benchmarks.",
        "_preact:PreActResNet18",
        PreActResNetConfig,
        "He, Zhang, Ren, Sun: Identity mappings in deep residual networks, ECCV 2016",
    )
    yield _info(
        "resnet-18",
        "ResNet for small images, 18 layers.",
        "_resnet:ResNet18",
        ResNetConfig,
        _RESNET,
    )
    yield _info(
        "resnet-34",
        "ResNet for small images, 34 layers.",
        "_resnet:ResNet34",
        ResNetConfig,
        _RESNET,
    )
    yield _info(
        "wrn-16-1",
        "Wide ResNet, 16 layers, widening factor 1, as in ABL and NAD.",
        "_wide_resnet:WRN16x1",
        FixedConfig,
        _WRN,
    )
    yield _info(
        "wrn-40-2",
        "Wide ResNet, 40 layers, widening factor 2.",
        "_wide_resnet:WRN40x2",
        FixedConfig,
        _WRN,
    )


def _other_networks() -> Iterable[MethodInfo]:
    yield _info(
        "vgg-19-bn",
        "VGG with batch norms, 19 layers, one linear layer.",
        "_vgg:VGG19",
        FixedConfig,
        "Simonyan, Zisserman: Very deep convolutional networks, ICLR 2015",
    )
    yield _info(
        "small-cnn",
        "Two conv-BN-ReLU per resolution, global average; trains on a laptop.",
        "_small:SmallCNNArchitecture",
        SmallCNNConfig,
    )
    yield _info(
        "vit",
        "Vision transformer for small images.",
        "_vit:VisionTransformerArchitecture",
        ViTConfig,
        "Dosovitskiy et al.: An image is worth 16x16 words, ICLR 2021",
    )
    yield _info(
        "torchvision",
        "Any classification network of torchvision, by name.",
        "_external:TorchvisionArchitecture",
        TorchvisionConfig,
    )
    yield _info(
        "callable",
        "A network made by a Python function of yours.",
        "_external:CallableArchitecture",
        CallableConfig,
    )
