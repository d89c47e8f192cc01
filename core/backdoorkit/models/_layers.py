"""The layers of a network whose units can be pruned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from torch import nn
from torch.nn.utils import parametrize

from backdoorkit.models._trace import Node, Trace, is_convolution

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["PrunableLayer", "layer_kinds", "prunable_layers"]

_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), "batch-norm"),
    ((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), "instance-norm"),
    (nn.GroupNorm, "group-norm"),
    (nn.LayerNorm, "layer-norm"),
    (nn.RMSNorm, "rms-norm"),
    (nn.Linear, "linear"),
    (nn.MultiheadAttention, "attention"),
)

_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@attrs.frozen(eq=False, kw_only=True)
class PrunableLayer:
    """One weight whose first axis is the layer's units: channels, rows or features."""

    #: module name; attention's input projection is ``<module>.in_proj``
    name: str
    #: conv, linear, attention, batch-norm, layer-norm, group-norm, instance-norm or rms-norm
    kind: str
    units: int
    #: full name of the weight, units first; a norm's is its scale γ
    weight: str
    #: full name of the bias, one value per unit; a norm's is its shift β. None where there is none
    bias: str | None
    #: on a projection shortcut of a residual block
    is_shortcut: bool
    is_head: bool
    #: a norm with running statistics: in eval mode an affine map per channel
    has_statistics: bool = False

    @property
    def is_norm(self) -> bool:
        """Whether this scales and shifts instead of mixing its inputs."""
        return self.kind.endswith("-norm")

    @property
    def parameters(self) -> tuple[str, ...]:
        """Full names of weight and bias."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


def layer_kinds(modules: dict[str, nn.Module]) -> dict[str, str]:
    """Kind of every module that is a layer, by name."""
    kinds = {}
    for name, module in modules.items():
        if is_convolution(module):
            kinds[name] = "conv"
        for types, kind in _KINDS:
            if isinstance(module, types):
                kinds[name] = kind
    return kinds


def prunable_layers(
    trace: Trace, kinds: dict[str, str], shortcuts: Collection[Node], head: str | None
) -> tuple[PrunableLayer, ...]:
    """Layers that took part in the forward, in registration order; shared weights appear once.

    Left out: layers without weights of their own, layer norms over more than the last axis (their
    weight has no unit axis) and weights computed by a parametrisation.
    """
    on_shortcut = {node.module for node in shortcuts if node.module is not None}
    layers: list[PrunableLayer] = []
    seen: set[int] = set()
    for name, kind in kinds.items():
        module = trace.modules[name]
        if parametrize.is_parametrized(module):
            continue
        for unit_name, weight, bias in _weights(name, kind, module):
            parameter = module.get_parameter(weight)
            full = f"{name}.{weight}" if name else weight
            ran = full in trace.used_parameters or name in trace.outputs
            has_axis = kind not in ("layer-norm", "rms-norm") or parameter.ndim == 1
            if not ran or not has_axis or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            layers.append(
                PrunableLayer(
                    name=unit_name,
                    kind=kind,
                    units=len(parameter),
                    weight=full,
                    bias=None if bias is None else (f"{name}.{bias}" if name else bias),
                    is_shortcut=name in on_shortcut,
                    is_head=name == head,
                    has_statistics=getattr(module, "running_var", None) is not None,
                )
            )
    return tuple(layers)


def _weights(name: str, kind: str, module: nn.Module) -> Iterator[tuple[str, str, str | None]]:
    """(unit name, weight, bias) of a layer; attention's output projection is a linear layer."""
    own = module._parameters
    if kind != "attention":
        if isinstance(own.get("weight"), nn.Parameter):
            yield name, "weight", "bias" if own.get("bias") is not None else None
        return
    for weight in _ATTENTION_WEIGHTS:
        if own.get(weight) is None:
            continue
        if weight == "in_proj_weight":
            bias = "in_proj_bias" if own.get("in_proj_bias") is not None else None
            yield f"{name}.in_proj", weight, bias
        else:
            yield f"{name}.{weight.removesuffix('_weight')}", weight, None
