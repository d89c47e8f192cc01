"""The trunk of a network and its stages: the last output at each resolution."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs

from backdoorkit.models._trace import BATCH_SIZE, Operation, Trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

__all__ = ["MapLayout", "find_stages", "find_trunk", "map_layouts"]

#: stages wanted; methods that compare feature maps use three (low, middle, high)
STAGE_COUNT = 3
#: a trunk child is opened while it holds more than this share of all convolution weights
_DOMINANT = 0.95
#: class, distillation and register tokens before the patches: more than this is no prefix
_MAX_PREFIX = 16


@attrs.frozen
class MapLayout:
    """How a module's output is read as a map of N x C x H x W."""

    height: int
    width: int
    #: ``channels-first`` (N, C, H, W), ``channels-last`` (N, H, W, C) or ``tokens`` (N, T, D)
    axes: str = "channels-first"
    #: class and register tokens before the patches
    prefix: int = 0

    def to_map(self, output: Tensor) -> Tensor:
        """``output`` as N x C x H x W; a view where possible."""
        if self.axes == "channels-first":
            return output
        if self.axes == "channels-last":
            return output.permute(0, 3, 1, 2)
        patches = output[:, self.prefix :].transpose(1, 2)
        return patches.reshape(len(output), -1, self.height, self.width)


def map_layouts(trace: Trace) -> dict[str, MapLayout]:
    """How the output of each module is read as a feature map; what is none is left out."""
    layouts = {name: _layout(trace, name) for name in trace.outputs}
    return {name: layout for name, layout in layouts.items() if layout is not None}


def find_trunk(trace: Trace, head: str | None) -> tuple[str, ...]:
    """Names of the modules that make up the network at the coarsest useful grain.

    The root's children, where one that holds nearly all convolution weights is replaced by its own
    children, again and again: ``layer1..4``, ``features.0..n``, ``features.denseblock1..4``. In a
    network of tokens without stages of other resolutions: its blocks.
    """
    names = _children(trace, "")
    aside = trace.modules[head] if head else None  # a convolution, in SqueezeNet
    total = _weights(trace.modules[""], 4, aside) or 1
    opened = True
    while opened:
        opened = False
        for position, name in enumerate(names):
            inner = _children(trace, name)
            if inner and _weights(trace.modules[name], 4, aside) > _DOMINANT * total:
                names[position : position + 1] = inner
                opened = True
                break
    ran = [name for name in trace.outputs if name in set(names)]
    if len(_last_per_resolution(trace, ran)) < 2 and (blocks := _token_blocks(trace)):
        return blocks
    return tuple(ran)


def find_stages(trace: Trace, trunk: Sequence[str]) -> tuple[str, ...]:
    """The stages among ``trunk``, first to last.

    The last module at each resolution with H W > 1, pooling aside; the last three of them. In a
    network of tokens all blocks have one resolution: then the last block of each third.
    """
    stages = _last_per_resolution(trace, trunk)
    if len(stages) < 2:
        blocks = {n: layout for n in trunk if (layout := _layout(trace, n)) is not None}
        if blocks and all(layout.axes == "tokens" for layout in blocks.values()):
            names = list(blocks)
            count = min(STAGE_COUNT, len(names))
            ends = [math.ceil(len(names) * part / count) - 1 for part in range(1, count + 1)]
            return tuple(names[end] for end in ends)
    return tuple(stages)[-STAGE_COUNT:]


def _children(trace: Trace, name: str) -> list[str]:
    prefix = f"{name}." if name else ""
    return [prefix + child for child, _ in trace.modules[name].named_children()]


def _weights(module: nn.Module, dimensions: int, aside: nn.Module | None = None) -> int:
    """Number of weights in parameters with at least this many dimensions, ``aside`` left out."""
    excluded = {id(p) for p in aside.parameters()} if aside is not None else set()
    weights = (p for p in module.parameters() if id(p) not in excluded)
    return sum(p.numel() for p in weights if p.ndim >= dimensions)


def _last_per_resolution(trace: Trace, names: Sequence[str]) -> dict[str, MapLayout]:
    last: dict[tuple[int, int], tuple[str, MapLayout]] = {}
    for name in names:
        layout = _layout(trace, name)
        if layout is None or layout.axes == "tokens" or _is_pooling(trace.modules[name]):
            continue
        size = (layout.height, layout.width)
        last.pop(size, None)
        last[size] = (name, layout)
    return dict(last.values())


def _is_pooling(module: nn.Module) -> bool:
    return "pool" in type(module).__name__.lower()


def _layout(trace: Trace, name: str) -> MapLayout | None:
    """How the output of ``name`` is a feature map; None where it is none, or H W = 1."""
    node = trace.outputs[name]
    if len(node.shape) < 3 or node.shape[0] != BATCH_SIZE:
        return None
    weighted = trace.of(Operation.CONVOLUTION, Operation.LINEAR)
    if not any(node.depends_on(other) for other in weighted):
        return None  # nothing was learnt yet: input normalisation
    if len(node.shape) == 3:
        return _token_layout(trace, node.shape)
    if len(node.shape) != 4:
        return None
    _, _, rows, columns = trace.nodes[0].shape
    _, a, b, c = node.shape
    for height, width, axes in ((b, c, "channels-first"), (a, b, "channels-last")):
        distortion = (height / rows) / (width / columns)
        if height * width > 1 and 0.6 < distortion < 1.7:  # rounding in odd sizes allowed for
            return MapLayout(height, width, axes)
    return None


def _token_layout(trace: Trace, shape: tuple[int, ...]) -> MapLayout | None:
    maps = [n.shape[2:] for n in trace.of(Operation.CONVOLUTION) if len(n.shape) == 4]
    side = math.isqrt(shape[1])
    height, width = maps[-1] if maps else (side, side)
    prefix = shape[1] - height * width
    if height * width > 1 and 0 <= prefix <= _MAX_PREFIX:
        return MapLayout(height, width, "tokens", prefix)
    return None


def _token_blocks(trace: Trace) -> tuple[str, ...]:
    """Children of the deepest module whose children with tokens hold nearly all weights."""
    best: tuple[str, ...] = ()
    most = 0
    for name in trace.modules:
        blocks = []
        for child in _children(trace, name):
            layout = _layout(trace, child) if child in trace.outputs else None
            if layout and layout.axes == "tokens" and _weights(trace.modules[child], 2):
                blocks.append(child)
        held = sum(_weights(trace.modules[block], 2) for block in blocks)
        if held and held >= _DOMINANT * most:  # named_modules goes from the outside in
            best, most = tuple(blocks), max(held, most)
    return best
