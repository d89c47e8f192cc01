"""What weights tell about the network they are for, and why they do not fit another."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

import attrs
import torch
from torch import Tensor

from backdoorkit.errors import InputError, nearest
from backdoorkit.models._pickles import printable
from backdoorkit.models.catalog import (
    CallableConfig,
    FixedConfig,
    PreActResNetConfig,
    SmallCNNConfig,
    TorchvisionConfig,
    ViTConfig,
    backdoorkit_models,
)

if TYPE_CHECKING:
    from pathlib import Path

    from backdoorkit.hooks.info import MethodInfo

__all__ = [
    "InferredNetwork",
    "infer_architecture",
    "infer_network",
    "infer_num_classes",
    "listed",
    "refuse_mismatch",
]

Weights: TypeAlias = Mapping[str, Tensor]

#: Buffers of a NormalizedModel.
_NORMALIZATION: Final = frozenset({"mean", "std"})

#: The last module of common classifiers; what follows may be numbers only.
_HEAD: Final = re.compile(
    r"(.*\.)?(linear|fc|head|heads|classifier|last_linear|output|logits)(\.(head|fc|\d+))*\.weight"
)


def infer_num_classes(weights: Weights) -> int:
    """Number of classes K: the rows of the last linear layer's weight.

    That layer is the last by number among those with a customary name (``fc``, ``linear``,
    ``classifier.6``...), else the last in the file; a 1x1 convolution counts where no layer is
    linear.

    Raises
    ------
    InputError
        where there is neither.

    """
    head = _head(weights)
    if head is None:
        raise InputError(
            "the number of classes cannot be told from the weights: they have no linear layer"
        )
    return int(weights[head].shape[0])


def _head(weights: Weights) -> str | None:
    layers = [name for name, value in weights.items() if value.ndim == 2]
    layers = layers or [name for name, v in weights.items() if tuple(v.shape[2:]) == (1, 1)]
    named = sorted((name for name in layers if _HEAD.fullmatch(name)), key=_natural)
    return next(reversed(named or layers), None)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which ``classifier.10`` comes after ``classifier.9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def infer_architecture(weights: Weights) -> str | None:
    """Name of the core's architecture whose parameters have just these names; None if none has.

    Widths are not compared. Weights saved with their normalisation are taken too.
    """
    names = _parameter_names(weights)
    return next((info.name for info in _buildable() if _names_in(info) == names), None)


@attrs.frozen(kw_only=True)
class InferredNetwork:
    """An architecture of the core whose parameters have just these names and shapes."""

    #: as the registry calls it
    name: str
    #: options by which it has these shapes
    options: Mapping[str, Any]
    #: number of classes K
    num_classes: int
    #: channels of the images
    channels: int


def infer_network(weights: Weights) -> InferredNetwork | None:
    """The one architecture of the core that has these weights; None where none or several have.

    Transformers are not told: nothing in their weights says how many heads they have.
    """
    weights = _without_normalization(weights)
    first = next((value for value in weights.values() if value.ndim == 4), None)
    if first is None or _head(weights) is None:
        return None
    classes, (width, channels) = infer_num_classes(weights), first.shape[:2]
    names, found = _parameter_names(weights), []
    for info in _buildable():
        for options in _possible_options(info.config, width):
            expected = _untrained(info, options, channels, classes)
            if _parameter_names(expected) == names and all(
                expected[name].shape == weights[name].shape for name in names
            ):
                found.append(
                    InferredNetwork(
                        name=info.name, options=options, num_classes=classes, channels=channels
                    )
                )
    return found[0] if len(found) == 1 else None


def _possible_options(config: type, width: int) -> list[dict[str, Any]]:
    if config is FixedConfig:
        return [{}]
    if config is ViTConfig:
        return []
    if config is SmallCNNConfig:
        return [{"width": width, "stages": stages} for stages in range(1, 7)]
    if config is PreActResNetConfig:
        return [{"width": width, "final_norm": norm} for norm in (False, True)]
    return [{"width": width}]


def _without_normalization(weights: Weights) -> dict[str, Tensor]:
    if not weights.keys() >= _NORMALIZATION:
        return dict(weights)
    return {
        name.removeprefix("network."): value
        for name, value in weights.items()
        if name not in _NORMALIZATION
    }


def _parameter_names(weights: Weights) -> frozenset[str]:
    plain = _without_normalization(weights)
    return frozenset(name for name in plain if not name.endswith("num_batches_tracked"))


def _buildable() -> list[MethodInfo]:
    external = (CallableConfig, TorchvisionConfig)
    return [info for info in backdoorkit_models() if info.config not in external]


def _names_in(info: MethodInfo) -> frozenset[str]:
    return _parameter_names(_untrained(info, {}, 3, 10))


def _untrained(
    info: MethodInfo, options: Mapping[str, Any], channels: int, num_classes: int
) -> Weights:
    module, _, name = info.implementation.partition(":")
    architecture = getattr(importlib.import_module(module), name)(info.config(**options))
    # On the meta device nothing is allocated, and no random number is drawn.
    with torch.device("meta"):
        weights: Weights = architecture.build((channels, 32, 32), num_classes).state_dict()
    return weights


# -- refusals --------------------------------------------------------------------------------------


def refuse_mismatch(
    expected: Weights,
    weights: Weights,
    *,
    missing: list[str],
    unexpected: list[str],
    misfit: list[str],
    path: Path,
) -> NoReturn:
    """Say why ``weights`` do not fit a network with the ``expected`` ones, and what would."""
    if missing or unexpected:
        reason = _names_differ(weights, missing, unexpected)
    else:
        reason = (
            _classes_differ(expected, weights, misfit)
            or _channels_differ(expected, weights, misfit)
            or _shapes_differ(expected, weights, misfit)
        )
    raise InputError(f"{path} does not fit the network: {reason}")


def _names_differ(weights: Weights, missing: list[str], unexpected: list[str]) -> str:
    if set(unexpected) >= _NORMALIZATION:
        return "it was saved with its normalisation; load it into a NormalizedModel"
    faults = []
    if missing:
        faults.append(f"it lacks {listed(missing)}")
    if unexpected:
        faults.append(f"it has {listed(unexpected)} too many")
    fault = " and ".join(faults)
    if architecture := infer_architecture(weights):
        return f"{fault}; its names are those of architecture {architecture!r}"
    close = nearest(missing[0], unexpected) if missing else None
    if close:
        return f"{fault}; perhaps {printable(close)!r} is what is called {missing[0]!r} here"
    return f"{fault}; choose the architecture that it was trained with"


def _classes_differ(expected: Weights, weights: Weights, misfit: list[str]) -> str:
    head = _head(expected)
    if head is None or (theirs := len(weights[head])) == (ours := len(expected[head])):
        return ""
    for name in misfit:
        given, wanted = weights[name].shape, expected[name].shape
        if (given[:1], wanted[:1]) != ((theirs,), (ours,)) or given[1:] != wanted[1:]:
            return ""
    return f"it has {theirs} classes, not {ours}; use it with data of {theirs} classes"


def _channels_differ(expected: Weights, weights: Weights, misfit: list[str]) -> str:
    # With another number of channels, the normalisation differs too.
    names = [name for name in misfit if name not in _NORMALIZATION]
    if len(names) != 1 or weights[names[0]].ndim != 4 or expected[names[0]].ndim != 4:
        return ""
    given, wanted = weights[names[0]].shape, expected[names[0]].shape
    if given[1] == wanted[1] or (given[0], *given[2:]) != (wanted[0], *wanted[2:]):
        return ""
    return (
        f"it takes images of {given[1]} channels, not {wanted[1]}; use it with data of "
        f"{given[1]} channels"
    )


def _shapes_differ(expected: Weights, weights: Weights, misfit: list[str]) -> str:
    shown = ", ".join(
        f"{name!r} is {_form(weights[name])}, not {_form(expected[name])}" for name in misfit[:3]
    )
    more = f" and {len(misfit) - 3} more differ" if len(misfit) > 3 else ""
    return f"{shown}{more}; check width, patch size and image size"


def _form(value: Tensor) -> str:
    shape = " x ".join(map(str, value.shape)) or "a single number"
    return f"{shape} ({str(value.dtype).removeprefix('torch.')})"


def listed(names: list[Any]) -> str:
    """The first three names, quoted and safe to show, and how many more there are."""
    shown = ", ".join(f"'{printable(name)}'" for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
