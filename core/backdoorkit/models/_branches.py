"""Which layers sit on shortcuts or in gates, and which norm reads which convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch
from torch import nn

from backdoorkit.models._trace import Node, Operation, Trace

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ConvNormPair", "NormSources", "conv_norm_pairs", "gate_nodes", "shortcut_nodes"]

_WEIGHTED = (Operation.CONVOLUTION, Operation.LINEAR, Operation.ATTENTION)
_SQUASHING = frozenset({"sigmoid", "hardsigmoid", "softmax", "tanh"})


@attrs.frozen(eq=False, kw_only=True)
class ConvNormPair:
    """Convolutions and the norm that reads them, or one convolution that no norm reads."""

    #: modules whose outputs are summed before the norm: one, or the branches of a residual sum.
    #: Linear layers and attention output projections stand here too where a norm reads them.
    #: Empty for channels of a concatenation that no convolution made.
    conv_names: tuple[str, ...]
    #: None where no norm follows
    norm_name: str | None
    #: kind of the norm, as in :class:`PrunableLayer`
    norm_kind: str | None = None
    #: whether an identity skip joins the sum
    has_identity: bool = False
    #: first channel of the norm that these convolutions feed (not 0 only after a concatenation)
    start: int = 0
    #: number of channels C
    channels: int
    #: whether the norm is, in eval mode, an affine map per channel with weights of its own: a
    #: batch norm with running statistics
    is_foldable: bool = False


@attrs.frozen(eq=False)
class NormSources:
    """Result of :func:`conv_norm_pairs`."""

    pairs: tuple[ConvNormPair, ...]
    #: norms that read no convolution, with what they read instead
    unpaired: dict[str, str]


def _bits(nodes: Iterable[Node]) -> int:
    union = 0
    for node in nodes:
        union |= node.ancestors
    return union


def _exclusive(trace: Trace, operand: Node, others: Iterable[Node]) -> list[Node]:
    """What only ``operand`` depends on: its branch since the fork, empty for an identity."""
    bits = operand.ancestors & ~_bits(others)
    branch = []
    while bits:
        lowest = bits & -bits
        branch.append(trace.nodes[lowest.bit_length() - 1])
        bits ^= lowest
    return branch


def shortcut_nodes(trace: Trace) -> frozenset[Node]:
    """All nodes on projection shortcuts.

    At a residual sum, a shortcut is a branch with a single layer where another has more layers, or
    a single one with a larger kernel.
    """
    found: set[Node] = set()
    for node in trace.of(Operation.ADD):
        branches = [
            _exclusive(trace, operand, (o for o in node.inputs if o is not operand))
            for operand in node.inputs
        ]
        layers = [[n for n in branch if n.operation in _WEIGHTED] for branch in branches]
        sizes = [(len(weighted), _taps(trace, weighted)) for weighted in layers]
        for branch, size in zip(branches, sizes, strict=True):
            if size[0] == 1 and size < max(sizes):
                found.update(branch)
    return frozenset(found)


def _taps(trace: Trace, nodes: list[Node]) -> int:
    """Largest number of kernel positions k_h k_w among ``nodes``."""
    modules = [trace.modules[node.module] for node in nodes if node.module is not None]
    kernels = [m.kernel_size for m in modules if isinstance(m, nn.modules.conv._ConvNd)]
    return max((torch.Size(kernel).numel() for kernel in kernels), default=1)


def gate_nodes(trace: Trace) -> frozenset[Node]:
    """All nodes that only make factors for other activations, as in squeeze-and-excitation."""
    found: set[Node] = set()
    for node in trace.of(Operation.MULTIPLY):
        if len(node.inputs) != 2:
            continue
        sizes = [torch.Size(operand.shape).numel() for operand in node.inputs]
        for gate, gated in (node.inputs, node.inputs[::-1]):
            smaller = sizes[0] != sizes[1] and torch.Size(gate.shape).numel() == min(sizes)
            if smaller or (sizes[0] == sizes[1] and gate.function in _SQUASHING):
                found.update(_exclusive(trace, gate, (gated,)))
    return frozenset(found)


# -- what a norm normalises ------------------------------------------------------------------------


@attrs.frozen(eq=False)
class _Segment:
    channels: int
    producers: tuple[Node, ...]
    has_identity: bool
    reason: str = ""


def conv_norm_pairs(trace: Trace, kinds: dict[str, str]) -> NormSources:
    """Pairs of all norms that read a convolution or linear layer, in execution order.

    ``kinds`` gives the kind of every module that is a layer, by name.
    """
    pairs: list[ConvNormPair] = []
    unpaired: dict[str, str] = {}
    for node in trace.of(Operation.NORM):
        name = node.module
        if name is None:
            continue
        module = trace.modules[name]
        channels = _norm_channels(module)
        segments = _segments(trace, node.inputs[0], channels)
        if not any(segment.producers for segment in segments):
            unpaired[name] = f"it reads {segments[0].reason}"
            continue
        start = 0
        for segment in segments:
            pairs.append(
                ConvNormPair(
                    conv_names=tuple(_producer_name(p) for p in segment.producers),
                    norm_name=name,
                    norm_kind=kinds.get(name),
                    has_identity=segment.has_identity,
                    start=start,
                    channels=segment.channels,
                    is_foldable=_is_foldable(module),
                )
            )
            start += segment.channels
    return NormSources(tuple(pairs), unpaired)


def _norm_channels(module: nn.Module) -> int:
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return module.normalized_shape[-1]
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    return int(module.num_features)  # type: ignore[arg-type]


def _is_foldable(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.running_var is not None
        and module.affine
    )


def _producer_name(node: Node) -> str:
    assert node.module is not None
    suffix = ".out_proj" if node.operation is Operation.ATTENTION else ""
    return node.module + suffix


def _producer_channels(trace: Trace, node: Node) -> int:
    module = trace.modules[node.module or ""]
    if isinstance(module, nn.MultiheadAttention):
        return int(module.embed_dim)
    size = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    return int(size)  # type: ignore[arg-type]


def _through(node: Node) -> Node:
    """The nearest node at or before ``node`` that does more than keep channels."""
    while node.operation is Operation.KEEP or (
        # A constant token put before the patches leaves the patches' channels as they are.
        node.operation is Operation.CONCATENATE
        and len(node.inputs) == 1
        and node.shape[2:] == node.inputs[0].shape[2:]
    ):
        node = node.inputs[0]
    return node


def _segments(trace: Trace, node: Node, channels: int) -> list[_Segment]:
    """Who makes which of the ``channels`` of ``node``; what cannot be followed is an identity."""
    node = _through(node)
    if node.operation in _WEIGHTED and _producer_channels(trace, node) == channels:
        return [_Segment(channels, (node,), has_identity=False)]
    if node.operation is Operation.CONCATENATE:
        widths = [operand.shape[1] for operand in node.inputs]
        if len(node.shape) != 3 and sum(widths) == channels == node.shape[1]:
            parts = zip(node.inputs, widths, strict=True)
            return [segment for part, width in parts for segment in _segments(trace, part, width)]
    if node.operation is Operation.ADD:
        producers, has_identity = _summands(trace, node, channels)
        if producers:
            return [_Segment(channels, tuple(producers), has_identity)]
    where = f" ({node.module})" if node.module else ""
    reason = f"what {node.function}{where} made" if node.inputs else "the images themselves"
    return [_Segment(channels, (), has_identity=True, reason=reason)]


def _summands(trace: Trace, node: Node, channels: int) -> tuple[list[Node], bool]:
    """Layers whose outputs enter the sum ``node``, and whether anything else does.

    A summand that something else reads too is the skip itself, even where a convolution made it.
    """
    producers: list[Node] = []
    has_identity = False
    for operand in node.inputs:
        source, is_private = operand, len(operand.consumers) == 1
        while source.operation is Operation.KEEP:
            source = source.inputs[0]
            is_private = is_private and len(source.consumers) == 1
        if is_private and source.operation in _WEIGHTED:
            if _producer_channels(trace, source) == channels:
                producers.append(source)
                continue
        elif is_private and source.operation is Operation.ADD:
            inner, inner_identity = _summands(trace, source, channels)
            producers += inner
            has_identity |= inner_identity or not inner
            continue
        has_identity = True
    return producers, has_identity
