"""Networks that others define: torchvision's by name, anybody's by import path."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from torch import nn
from torchvision import models

from backdoorkit.contracts import Architecture
from backdoorkit.errors import InputError, UnknownNameError
from backdoorkit.models._building import check_logits, require_images, size_text
from backdoorkit.models.catalog import CallableConfig, TorchvisionConfig

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CallableArchitecture", "TorchvisionArchitecture"]


class TorchvisionArchitecture(Architecture[TorchvisionConfig]):
    """A classification network of torchvision, untrained; nothing is downloaded.

    Transformers are made for the images' size. Where the images do not have three channels, the
    first convolution is replaced by one that fits.
    """

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """The network, once two images went through it."""
        name = self.config.architecture
        known = models.list_models(module=models)  # type: ignore[attr-defined]
        if name not in known:
            raise UnknownNameError("architecture of torchvision", name, known)
        what = f"torchvision's {name}"
        require_images(what, image_shape, num_classes, least=1)
        try:
            network: nn.Module = models.get_model(  # type: ignore[attr-defined]
                name, weights=None, num_classes=num_classes, **_size_options(name, image_shape)
            )
        except Exception as error:
            raise InputError(
                f"{what} cannot be made for images of {size_text(image_shape)}: "
                f"{_one_line(error)}; use images of another size or another architecture"
            ) from error
        if image_shape[0] != 3:
            _replace_first_convolution(network, image_shape[0], what)
        check_logits(network, image_shape, num_classes, what)
        return network


def _size_options(name: str, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    _, height, width = image_shape
    if name.startswith("vit_"):
        if height != width:
            raise ValueError("it takes square images only")
        return {"image_size": height}
    if name.startswith("maxvit_"):
        return {"input_size": (height, width)}
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    return {}


def _replace_first_convolution(network: nn.Module, channels: int, what: str) -> None:
    found = (pair for pair in network.named_modules() if isinstance(pair[1], nn.Conv2d))
    name, first = next(found, ("", None))
    if first is None:
        raise InputError(f"{what} has no convolution that could take {channels} channels")
    options = ("out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
    fitting = nn.Conv2d(
        channels,
        bias=first.bias is not None,
        **{option: getattr(first, option) for option in options},
    )
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, fitting)


class CallableArchitecture(Architecture[CallableConfig]):
    """Whatever a function returns; the function's module is imported when the network is built."""

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """The network, once two images went through it."""
        target = self.config.target
        require_images(target, image_shape, num_classes, least=1)
        function = _find(target)
        options: dict[str, Any] = {"num_classes": num_classes}
        if "image_shape" in _parameters(function):
            options["image_shape"] = image_shape
        try:
            network = function(**options)
        except Exception as error:
            called = ", ".join(f"{name}={value}" for name, value in options.items())
            raise InputError(f"{target}({called}) failed: {_one_line(error)}") from error
        if not isinstance(network, nn.Module):
            raise InputError(
                f"{target} must return a torch.nn.Module, not {type(network).__name__}"
            )
        network = network.to("cpu")
        check_logits(network, image_shape, num_classes, f"the network of {target}")
        return network


def _find(target: str) -> Callable[..., Any]:
    module_name, _, name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            f"cannot import {module_name} for architecture {target}: {_one_line(error)}; "
            "is it installed, or its folder on PYTHONPATH?"
        ) from error
    found = getattr(module, name, None)
    if found is None:
        known = [key for key, value in vars(module).items() if callable(value)]
        raise UnknownNameError(f"function of {module_name}", name, known)
    if not callable(found):
        raise InputError(f"{target} must be a function, not {type(found).__name__}")
    function: Callable[..., Any] = found
    return function


def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(function).parameters)
    except ValueError:  # a function written in C need not have one
        return frozenset()


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
