"""Weights from files, foreign ones included: read without running them, checked, then loaded."""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backdoorkit.errors import InputError, nothing_at
from backdoorkit.models._matching import (
    InferredNetwork,
    infer_architecture,
    infer_network,
    infer_num_classes,
    listed,
    refuse_mismatch,
)
from backdoorkit.models._pickles import printable, read_torch_file
from backdoorkit.models.normalized import NormalizedModel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "Checkpoint",
    "InferredNetwork",
    "infer_architecture",
    "infer_network",
    "infer_num_classes",
    "load_weights",
    "read_checkpoint",
    "read_weights",
    "save_weights",
]

#: Larger files are refused before anything is read: no image classifier comes near it.
_MOST_BYTES: Final = 8 << 30
#: Under which key training scripts keep the weights, in the order in which they are looked for.
_WRAPPERS: Final = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "netC",
    "network",
    "weights",
    "params",
)
_MOST_WRAPPERS: Final = 4
#: What DataParallel and torch.compile put before every name.
_PREFIXES: Final = ("module.", "_orig_mod.")


#: What BackdoorBench writes beside the weights (``attack_result.pt``, second layout).
_BENCHMARK_KEYS: Final = frozenset({"model_name", "num_classes", "model", "img_size", "clean_data"})


@attrs.frozen(kw_only=True)
class Checkpoint:
    """A weights file, with what it says about its model beside the weights."""

    #: float tensors and counters by name, on the CPU
    weights: Mapping[str, Tensor]
    #: the file's own name of the architecture, such as ``preactresnet18``
    architecture: str | None = None
    #: number of classes K
    num_classes: int | None = None
    #: C, H, W
    image_shape: tuple[int, int, int] | None = None
    #: the file's own name of the data set, such as ``cifar10``
    data: str | None = None


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights alone of :func:`read_checkpoint`."""
    return dict(read_checkpoint(path).weights)


def read_checkpoint(path: Path) -> Checkpoint:
    """The named tensors of a weights file, on the CPU; nothing in the file is ever executed.

    ``.safetensors`` files are read as such, all others as what ``torch.save`` writes, in its
    present and its old format. Weights inside ``state_dict``, ``net``, ``model`` and the like are
    taken out, the prefix ``module.`` is taken off, and masks of ``torch.nn.utils.prune`` are
    applied. Of BackdoorBench's ``attack_result.pt`` the facts about the model are taken too; the
    poisoned images that lie beside such a file are left alone.

    Raises
    ------
    UnsafeFileError
        where reading the file would mean executing it; the message names what it wants.
    InputError
        where it is missing, damaged, too large, not a weights file, or holds NaN.

    """
    size = _file_size(path)
    if path.suffix.lower() == ".safetensors":
        try:
            content: Any = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(
                f"{path} is not a sound .safetensors file ({printable(error)}); "
                "copy or download it again"
            ) from error
    else:
        content = read_torch_file(path)
    weights = _named_tensors(_unwrap(content, path), path)
    _check_storage(weights, size, path)
    weights = _fold_masks(_strip_prefixes(weights))
    _check_finite(weights, path)
    return Checkpoint(weights=weights, **_benchmark_facts(content))


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], *, path: Path) -> None:
    """Put ``weights`` into ``network``; every name and shape must fit.

    Only the step counters of batch norms may be missing: files from before 2018 lack them, and
    they have no influence. A :class:`NormalizedModel` takes weights with normalisation (which then
    replaces its own) and without.

    Parameters
    ----------
    network:
        Changed in place.
    weights:
        From :func:`read_weights`; any floating-point type is converted.
    path:
        Where they came from, for messages.

    Raises
    ------
    InputError
        naming what is missing, unexpected or of another shape, and the likely cause: another
        number of classes or channels, another architecture.

    """
    if isinstance(network, NormalizedModel) and "mean" not in weights:
        network = network.network
    expected = network.state_dict()
    missing = [
        name
        for name in expected
        if name not in weights and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in weights if name not in expected]
    misfit = [
        name
        for name, value in expected.items()
        if name in weights and not _fits(weights[name], value)
    ]
    if missing or unexpected or misfit:
        refuse_mismatch(
            expected, weights, missing=missing, unexpected=unexpected, misfit=misfit, path=path
        )
    with torch.no_grad():
        for name, value in expected.items():
            if name in weights:
                value.copy_(weights[name])


def save_weights(path: Path, weights: Mapping[str, Tensor] | nn.Module) -> None:
    """Write named tensors, or a module's, as ``.safetensors``; the file appears whole or not."""
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    # Copies, since the format refuses tensors that share memory.
    copies = {
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(copies, partial, metadata={"format": "pt"})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


# -- reading ---------------------------------------------------------------------------------------


def _benchmark_facts(content: Any) -> dict[str, Any]:
    """What a file in BackdoorBench's layout says of its model; nothing of values that look odd."""
    if not isinstance(content, dict):
        return {}
    values = dict(dict.items(content))
    if not values.keys() >= _BENCHMARK_KEYS:
        return {}
    facts: dict[str, Any] = {}
    names = {"architecture": values["model_name"], "data": values["clean_data"]}
    facts.update({key: printable(name) for key, name in names.items() if type(name) is str})
    if type(values["num_classes"]) is int:
        facts["num_classes"] = values["num_classes"]
    size = values["img_size"]  # height, width, channels
    if type(size) is tuple and len(size) == 3 and all(type(n) is int and n > 0 for n in size):
        facts["image_shape"] = (size[2], size[0], size[1])
    return facts


def _file_size(path: Path) -> int:
    if not path.exists():
        raise InputError(nothing_at(path, "weights file"))
    if not path.is_file():
        raise InputError(f"{path} is a folder; give a .safetensors, .pt or .pth file")
    if not os.access(path, os.R_OK):
        raise InputError(f"weights file {path} may not be read; check its permissions")
    size = path.stat().st_size
    if size == 0:
        raise InputError(f"{path} is empty; copy or download it again")
    if size > _MOST_BYTES:
        raise InputError(
            f"{path} has {size / 2**30:.1f} GiB, and weights of at most {_MOST_BYTES >> 30} GiB "
            "are read; is it a checkpoint of an image classifier?"
        )
    return size


def _unwrap(content: Any, path: Path) -> dict[Any, Any]:
    """The innermost mapping that training scripts wrap in others."""
    for _ in range(_MOST_WRAPPERS):
        if not isinstance(content, dict):
            break
        # Not content.items(): a hostile file may have put something else in its place.
        values = dict(dict.items(content))
        inner = (values[key] for key in _WRAPPERS if isinstance(values.get(key), dict))
        content = next(inner, None)
        if content is None:
            return values
    raise InputError(
        f"{path} holds a {type(content).__name__} where named tensors (a state_dict) are wanted; "
        "save model.state_dict()"
    )


def _named_tensors(values: dict[Any, Any], path: Path) -> dict[str, Tensor]:
    odd = [name for name, value in values.items() if not _is_plain(name, value)]
    if not odd and values:
        # Called on the class, as above; a plain tensor without attributes or gradient comes back.
        return {name: Tensor.detach(value) for name, value in values.items()}
    if len(odd) == len(values):
        held = f"it has {listed(odd)}" if odd else "it is empty"
        raise InputError(
            f"{path} holds no weights: {held}; weights are looked for at the top and under "
            f"{', '.join(_WRAPPERS)}"
        )
    kinds = Counter(type(values[name]).__name__ for name in odd).most_common(1)[0][0]
    raise InputError(
        f"{path} holds more than dense tensors: {listed(odd)} ({kinds}); save "
        "model.state_dict() of a plain, unquantised model"
    )


def _is_plain(name: Any, value: Any) -> bool:
    return (
        isinstance(name, str)
        and type(value) in (Tensor, nn.Parameter)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _check_storage(weights: Mapping[str, Tensor], size: int, path: Path) -> None:
    """Refuse tensors that claim more numbers than the file has, before anything copies them."""
    storages = [value.untyped_storage() for value in weights.values()]
    held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    spread = [
        name
        for name, value in weights.items()
        if value.numel() * value.element_size() > value.untyped_storage().nbytes()
    ]
    if held > size or spread:
        raise InputError(
            f"{path} claims tensors larger than the file itself; it is damaged or made to exhaust "
            "memory"
        )


def _strip_prefixes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in weights)), ""):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _fold_masks(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """``x_orig`` and ``x_mask``, left behind by pruning, as the product ``x``."""
    folded = {}
    for name, value in weights.items():
        base = re.sub(r"_(orig|mask)$", "", name)
        original, mask = weights.get(f"{base}_orig"), weights.get(f"{base}_mask")
        if base == name or original is None or mask is None or original.shape != mask.shape:
            folded[name] = value
        else:
            folded[base] = original * mask
    return folded


def _check_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    bad = [
        name
        for name, value in weights.items()
        if value.is_floating_point() and not torch.isfinite(value.float()).all()
    ]
    if bad:
        raise InputError(
            f"{path} has NaN or infinite numbers in {listed(bad)}; its training diverged or the "
            "file is damaged"
        )


def _fits(given: Tensor, wanted: Tensor) -> bool:
    return given.shape == wanted.shape and given.is_floating_point() == wanted.is_floating_point()
