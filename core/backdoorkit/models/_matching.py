"""What weights tell about the network they are for, and why they do not fit another."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

import torch
from torch import Tensor

from backdoorkit.errors import InputError, nearest
from backdoorkit.models._pickles import printable
from backdoorkit.models.catalog import CallableConfig, TorchvisionConfig, backdoorkit_models

if TYPE_CHECKING:
    from pathlib import Path

    from backdoorkit.hooks.info import MethodInfo

__all__ = ["infer_architecture", "infer_num_classes", "listed", "refuse_mismatch"]

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


def _parameter_names(weights: Weights) -> frozenset[str]:
    names = {name for name in weights if not name.endswith("num_batches_tracked")}
    if names >= _NORMALIZATION:
        names = {name.removeprefix("network.") for name in names - _NORMALIZATION}
    return frozenset(names)


def _buildable() -> list[MethodInfo]:
    external = (CallableConfig, TorchvisionConfig)
    return [info for info in backdoorkit_models() if info.config not in external]


def _names_in(info: MethodInfo) -> frozenset[str]:
    module, _, name = info.implementation.partition(":")
    architecture = getattr(importlib.import_module(module), name)(info.config())
    # On the meta device nothing is allocated, and no random number is drawn.
    with torch.device("meta"):
        return _parameter_names(architecture.build((3, 32, 32), 10).state_dict())


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
