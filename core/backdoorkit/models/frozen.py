"""Networks whose weights stand still: made for many passes and for gradients of images."""

from __future__ import annotations

import copy
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from backdoorkit.errors import StructureError
from backdoorkit.models._trace import Operation, trace_forward

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.autograd.function import FunctionCtx

    from backdoorkit.models._trace import Trace

__all__ = ["frozen_copy"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def frozen_copy(model: nn.Module, image_shape: tuple[int, int, int]) -> nn.Module:
    """A copy of ``model`` in eval mode, channels last, whose weights get no gradients.

    Batch norms that are the only reader of a convolution become part of its weights; the others
    keep their forward and get a backward that only scales. Logits and gradients of images are the
    model's but for rounding, and take less time. Images still do not see each other. Networks that
    cannot be traced fold nothing.

    Parameters
    ----------
    model:
        Left as it was.
    image_shape:
        C, H, W of the images it takes.

    """
    frozen = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
    try:
        trace = trace_forward(frozen, image_shape)
    except StructureError:
        trace = None
    if trace is not None:
        for convolution, norm in _only_readers(frozen, trace):
            _fold(frozen, convolution, norm)
    for name, module in list(frozen.named_modules()):
        if _is_plain_norm(module) and name:
            frozen.set_submodule(name, _FrozenNorm(cast("nn.BatchNorm2d", module)))
    return frozen.to(memory_format=torch.channels_last)


def _only_readers(model: nn.Module, trace: Trace) -> Iterator[tuple[str, str]]:
    """Names of convolutions and of the norms that alone read their outputs, as they come."""
    norms, convolutions = trace.of(Operation.NORM), trace.of(Operation.CONVOLUTION)
    runs = Counter(node.module for node in (*norms, *convolutions))
    shared = _shared(model)
    for node in norms:
        source = node.inputs[0]
        if source.operation is not Operation.CONVOLUTION or source.consumers != [node]:
            continue
        names = (source.module, node.module)
        if None in names or any(runs[name] != 1 or name in shared for name in names):
            continue
        convolution, norm = (model.get_submodule(str(name)) for name in names)
        if _is_plain_norm(norm) and _is_plain(convolution, nn.Conv1d, nn.Conv2d):
            yield str(source.module), str(node.module)


def _shared(model: nn.Module) -> set[str]:
    """Modules that have a parameter in common with another, or two names."""
    owners: dict[int, set[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}


def _is_plain(module: nn.Module, *types: type[nn.Module]) -> bool:
    """Whether the module is exactly of one of these types and nothing listens to it."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return type(module) in types and not any(hooks) and not parametrize.is_parametrized(module)


def _is_plain_norm(module: nn.Module) -> bool:
    """Whether the module is, in eval mode, an affine map per channel with fixed weights."""
    if not _is_plain(module, *_NORMS):
        return False
    return bool(module.affine) and module.running_var is not None


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """γ / σ and β − μ γ / σ, in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


@torch.no_grad()
def _fold(model: nn.Module, convolution_name: str, norm_name: str) -> None:
    convolution = cast("nn.Conv2d", model.get_submodule(convolution_name))
    norm = cast("nn.BatchNorm2d", model.get_submodule(norm_name))
    scale, shift = _scale_and_shift(norm)
    weight = convolution.weight
    folded = weight.double() * scale.view(-1, *(1,) * (weight.ndim - 1))
    bias = shift if convolution.bias is None else shift + convolution.bias.double() * scale
    convolution.weight = nn.Parameter(folded.to(weight.dtype), requires_grad=False)
    convolution.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)
    model.set_submodule(norm_name, nn.Identity())


class _FrozenNorm(nn.Module):
    """A batch norm in eval mode; its backward does not read what went in."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm
        self.register_buffer("scale", _scale_and_shift(norm)[0].to(norm.weight.dtype))

    def forward(self, values: Tensor) -> Tensor:
        normed: Tensor = _ScaleBackward.apply(values, self.norm, self.scale)
        return normed


class _ScaleBackward(torch.autograd.Function):
    """y = s x + t, dx = s dy. Torch's own backward in eval mode reads x as well."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, norm: nn.BatchNorm2d, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return functional.batch_norm(
            values, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        scale = ctx.saved_tensors[0].to(gradient.dtype)
        if gradient.ndim == 4 and gradient.is_contiguous(memory_format=torch.channels_last):
            # As rows of all positions: a row of a few channels is too short to be multiplied fast.
            count, channels, height, width = gradient.shape
            rows = gradient.permute(0, 2, 3, 1).reshape(count, -1) * scale.repeat(height * width)
            return rows.view(count, height, width, channels).permute(0, 3, 1, 2), None, None
        return gradient * scale.view(-1, *(1,) * (gradient.ndim - 2)), None, None
