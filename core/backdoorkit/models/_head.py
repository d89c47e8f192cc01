"""The head of a network, the features it reads, and the last convolution before it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from torch import Tensor, nn

from backdoorkit.errors import StructureError, UnknownNameError
from backdoorkit.models._trace import Node, Operation, Trace, is_convolution

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "FeatureCapture",
    "feature_dim",
    "find_head",
    "last_convolution",
    "penultimate_features",
    "submodule",
]


class FeatureCapture:
    """Holds the penultimate features of the latest forward."""

    def __init__(self) -> None:
        self._features: Tensor | None = None

    @property
    def features(self) -> Tensor:
        """N x d; positions of a map and tokens are averaged."""
        if self._features is None:
            raise StructureError("no forward has reached the head yet; call the model first")
        return self._features


@contextlib.contextmanager
def penultimate_features(model: nn.Module, head_name: str) -> Iterator[FeatureCapture]:
    """The inputs of the head in every forward inside the ``with`` block; gradients flow through.

    Raises
    ------
    StructureError
        where ``model`` has no such layer.

    """
    head = submodule(model, head_name)
    capture = FeatureCapture()

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs = args[0]
        if inputs.ndim > 2:  # a convolution sees N x d x H x W, a linear layer N x T x d
            flat = inputs.flatten(2) if is_convolution(module) else inputs.flatten(1, -2)
            inputs = flat.mean(2 if is_convolution(module) else 1)
        capture._features = inputs

    handle = head.register_forward_pre_hook(keep)
    try:
        yield capture
    finally:
        handle.remove()


def submodule(model: nn.Module, name: str) -> nn.Module:
    """``model.get_submodule``, with a StructureError where there is none of that name."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise StructureError(
            f"{type(model).__name__} has no layer {name!r}; the structure must be found on the "
            "model it is used with"
        ) from None


def find_head(trace: Trace, wanted: str | None) -> tuple[str | None, str]:
    """Name of the head, or None and the reason: the one layer nearest before the logits."""
    layers = {
        node.module: node
        for node in trace.of(Operation.LINEAR, Operation.CONVOLUTION)
        if node.module is not None
    }
    if wanted is not None:
        if wanted not in layers:
            raise UnknownNameError("linear layer or convolution that ran", wanted, layers)
        return wanted, ""
    nearest = _nearest_layers(trace.output)
    if any(node.operation is Operation.ATTENTION for node in nearest):
        return None, "the logits come straight out of attention"
    classes = trace.output.shape[1]
    fitting = {n.module for n in nearest if _units(trace, n) == classes and n.module is not None}
    if len(fitting) == 1:
        return fitting.pop(), ""
    if fitting:
        names = " and ".join(repr(name) for name in sorted(fitting))
        return None, f"{names} make the logits together"
    last = ", ".join(repr(node.module) for node in nearest) or "no layer"
    return None, f"what is nearest to its {classes} logits is {last}"


def _nearest_layers(output: Node) -> list[Node]:
    """Layers with weights from which ``output`` is reached without passing another such layer."""
    found: dict[Node, None] = {}
    queue, seen = [output], {output}
    while queue:
        node = queue.pop(0)
        if node.operation in (Operation.LINEAR, Operation.CONVOLUTION, Operation.ATTENTION):
            found[node] = None
            continue
        fresh = [producer for producer in node.inputs if producer not in seen]
        seen.update(fresh)
        queue += fresh
    return list(found)


def _units(trace: Trace, node: Node) -> int:
    module = trace.modules[node.module or ""]
    units = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    return int(units)  # type: ignore[arg-type]


def feature_dim(head: nn.Module) -> int:
    """Number of inputs d of a linear layer or convolution."""
    features = head.in_features if isinstance(head, nn.Linear) else head.in_channels
    return int(features)  # type: ignore[arg-type]


def last_convolution(trace: Trace, aside: Sequence[Node], head: str | None) -> str | None:
    """Name of the last convolution that ran, ``aside`` (shortcuts and gates) and head left out."""
    excluded = set(aside)
    names = [
        node.module
        for node in trace.of(Operation.CONVOLUTION)
        if node not in excluded and node.module != head and trace.output.depends_on(node)
    ]
    return names[-1] if names else None
