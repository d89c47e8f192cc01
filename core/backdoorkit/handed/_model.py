"""What a weights file is for: architecture, classes, channels; told where that is unambiguous."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from backdoorkit.errors import InputError
from backdoorkit.hooks.info import Kind
from backdoorkit.hooks.registry import resolve_config
from backdoorkit.models.checkpoints import (
    infer_architecture,
    infer_network,
    infer_num_classes,
    load_weights,
    read_checkpoint,
)
from backdoorkit.models.normalized import NormalizedModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from backdoorkit.handed.request import Request
    from backdoorkit.hooks.registry import Registry
    from backdoorkit.models.checkpoints import Checkpoint, InferredNetwork

__all__ = ["HandedModel", "inspect_model"]

#: Statistics that BackdoorBench normalises by, by its names of data sets.
_BENCHMARK_STATISTICS: Final[Mapping[str, Any]] = {
    "cifar10": {"mean": [0.4914, 0.4822, 0.4465], "std": [0.247, 0.243, 0.261]},
    "cifar100": {"mean": [0.5071, 0.4865, 0.4409], "std": [0.2673, 0.2564, 0.2762]},
    "tiny": {"mean": [0.4802, 0.4481, 0.3975], "std": [0.2302, 0.2265, 0.2262]},
    "gtsrb": "none",
    "celeba": "none",
}


@attrs.frozen(kw_only=True, eq=False)
class HandedModel:
    """A weights file and the network that it is for."""

    path: Path
    weights: Mapping[str, Tensor]
    #: name and options of the architecture, as a recipe's table has them
    architecture: Mapping[str, Any]
    is_told: bool
    num_classes: int
    channels: int
    #: C, H, W where the file says it
    image_shape: tuple[int, int, int] | None
    #: normalisation that the file says it wants, as a recipe has it
    stated_normalization: Any = None

    @property
    def has_normalization(self) -> bool:
        """Whether mean and standard deviation are stored with the weights."""
        return {"mean", "std"} <= self.weights.keys()

    def build(
        self,
        registry: Registry,
        image_shape: tuple[int, int, int],
        statistics: tuple[Sequence[float], Sequence[float]],
    ) -> NormalizedModel:
        """The model, in eval mode on the CPU.

        Raises
        ------
        InputError
            where the weights do not fit.

        """
        options = dict(self.architecture)
        method = registry.find(options.pop("name"), Kind.MODEL)
        architecture = registry.create(method, resolve_config(method, options, "model"))
        network = architecture.build(image_shape, self.num_classes)
        model = NormalizedModel(network, *statistics)
        load_weights(model, self.weights, path=self.path)
        return model.eval()


def inspect_model(request: Request, registry: Registry, values: Mapping[str, Any]) -> HandedModel:
    """Read the weights and find out what they are for.

    ``values`` are options of the architecture that the user gave beside its name.

    Raises
    ------
    InputError
        where the file cannot be read, or does not tell what the user left open.

    """
    checkpoint = read_checkpoint(request.model)
    inferred = infer_network(checkpoint.weights)
    architecture = _architecture(request, registry, checkpoint, inferred)
    return HandedModel(
        path=request.model,
        weights=checkpoint.weights,
        architecture={**architecture, **values},
        is_told=request.architecture is None,
        num_classes=_classes(request, checkpoint, inferred),
        channels=_channels(checkpoint, request.model),
        image_shape=checkpoint.image_shape,
        stated_normalization=_BENCHMARK_STATISTICS.get(checkpoint.data or ""),
    )


def _architecture(
    request: Request,
    registry: Registry,
    checkpoint: Checkpoint,
    inferred: InferredNetwork | None,
) -> dict[str, Any]:
    wanted = request.architecture
    if wanted is not None and ":" in wanted:
        return {"name": "callable", "target": wanted}
    if wanted is not None:
        registry.find(wanted, Kind.MODEL)
        same = inferred is not None and inferred.name == wanted
        return {"name": wanted, **(inferred.options if inferred is not None and same else {})}
    if inferred is not None:
        return {"name": inferred.name, **inferred.options}
    alike = infer_architecture(checkpoint.weights)
    if alike is not None:
        raise InputError(
            f"{request.model} has the names of architecture {alike!r}, and its sizes do not tell "
            f"the rest; give --arch {alike}, and its options with --set model.OPTION=VALUE"
        )
    called = f" (it calls itself {checkpoint.architecture!r})" if checkpoint.architecture else ""
    known = ", ".join(sorted(method.name for method in registry.methods(Kind.MODEL)))
    raise InputError(
        f"the weights in {request.model} are of no architecture known here{called}; give --arch "
        f"with one of {known}, or package.module:function that makes the network"
    )


def _classes(request: Request, checkpoint: Checkpoint, inferred: InferredNetwork | None) -> int:
    wanted = request.num_classes
    if inferred is not None:
        told: int | None = inferred.num_classes
    elif checkpoint.num_classes is not None:
        told = checkpoint.num_classes
    else:
        try:
            told = infer_num_classes(checkpoint.weights)
        except InputError:
            told = None
    if told is None and wanted is None:
        raise InputError(
            f"the number of classes cannot be told from {request.model}; give --classes"
        )
    if told is not None and wanted not in (None, told):
        raise InputError(f"{request.model} has {told} classes, not {wanted}; leave out --classes")
    found = told if wanted is None else wanted
    assert found is not None
    return found


def _channels(checkpoint: Checkpoint, path: Path) -> int:
    first = next((value for value in checkpoint.weights.values() if value.ndim == 4), None)
    channels = 3 if first is None else int(first.shape[1])
    if checkpoint.image_shape is not None:
        channels = checkpoint.image_shape[0]
    if channels not in (1, 3):
        raise InputError(
            f"{path} takes images of {channels} channels, and pictures have 1 (grey) or 3 (RGB)"
        )
    return channels
