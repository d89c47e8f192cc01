"""What the trigger does to every channel: its activations on images without and with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch
from torch.nn import functional

from backdoorkit.api import batches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from backdoorkit.api import Context, ImageSet, PrunableLayer, Structure

__all__ = ["ChannelActivity", "channel_activity", "norms_of", "with_outputs"]

#: images at once, half of them triggered
_BATCH = 128


@attrs.frozen(kw_only=True, eq=False)
class ChannelActivity:
    """One layer's channels on the same images without and with the trigger; all float32, C."""

    #: TAC: mean over the images of the norm of the difference of a channel's two maps
    change: Tensor
    #: mean over images and positions of the rectified channel
    clean: Tensor
    triggered: Tensor


@torch.no_grad()
def with_outputs(
    model: nn.Module, structure: Structure, layers: Sequence[PrunableLayer], images: Tensor
) -> tuple[PrunableLayer, ...]:
    """Those of ``layers`` that have an output of their own when ``model`` sees ``images``.

    Attention takes the weights of its projections without calling them.
    """
    modules = {name for name, _ in model.eval().named_modules()}
    named = [layer.name for layer in layers if layer.name in modules]
    with structure.feature_maps(model, named) as maps:
        model(images)
    return tuple(layer for layer in layers if layer.name in maps)


def norms_of(structure: Structure, layers: Sequence[PrunableLayer]) -> dict[str, str]:
    """The batch norm that reads each layer, where it is one alone and reads nothing else."""
    found: dict[str, str] = {}
    for layer in layers:
        readers = [pair for pair in structure.conv_norm_pairs if layer.name in pair.conv_names]
        if len(readers) != 1 or readers[0].norm_name is None:
            continue
        (pair,) = readers
        is_sum = len(pair.conv_names) > 1 or pair.has_identity
        if pair.is_foldable and not is_sum and pair.start == 0 and pair.channels == layer.units:
            found[layer.name] = readers[0].norm_name
    return found


@torch.no_grad()
def channel_activity(
    model: nn.Module,
    structure: Structure,
    layers: Sequence[PrunableLayer],
    clean: ImageSet,
    triggered: ImageSet,
    context: Context,
    *,
    order: float = 2,
    after_norm: bool = True,
) -> dict[str, ChannelActivity]:
    """Activity of every channel of ``layers``, by name, in one pass in eval mode.

    Parameters
    ----------
    clean, triggered:
        The same images in the same order, without and with the trigger.
    order:
        1 or 2: the norm of a channel's difference over positions (pixels or tokens).
    after_norm:
        Look behind the batch norm of layers that have one to themselves; else, and for all other
        layers, at the layer's own output. Always before the activation function.

    """
    model.eval()
    names = [layer.name for layer in layers]
    norms = norms_of(structure, layers) if after_norm else {}
    totals = {layer.name: torch.zeros(3, layer.units, device=context.device) for layer in layers}
    half = _BATCH // 2
    pairs = zip(
        batches(clean, half, device=context.device),
        batches(triggered, half, device=context.device),
        strict=True,
    )
    with structure.feature_maps(model, names) as maps:
        for without, planted in pairs:
            model(torch.cat([without.images, planted.images]))
            for name in names:
                channels = _by_channel(maps[name]).float()
                if name in norms:
                    channels = _normalised(channels, model.get_submodule(norms[name]))
                first, second = channels.chunk(2)
                totals[name] += torch.stack(
                    [
                        torch.linalg.vector_norm(first - second, ord=order, dim=2).sum(dim=0),
                        functional.relu(first).mean(dim=2).sum(dim=0),
                        functional.relu(second).mean(dim=2).sum(dim=0),
                    ]
                )
    return {
        name: ChannelActivity(change=change, clean=plain, triggered=planted)
        for name, (change, plain, planted) in (
            (name, total / len(clean)) for name, total in totals.items()
        )
    }


def _by_channel(output: Tensor) -> Tensor:
    """N x C x positions, from maps (N x C x H x W), tokens (N x T x C) or features (N x C)."""
    if output.ndim == 2:
        return output[:, :, None]
    return output.transpose(1, 2) if output.ndim == 3 else output.flatten(2)


def _normalised(channels: Tensor, norm: nn.Module) -> Tensor:
    """As batch norm in eval mode does it."""
    return functional.batch_norm(
        channels,
        norm.running_mean,  # type: ignore[arg-type]
        norm.running_var,  # type: ignore[arg-type]
        norm.weight,  # type: ignore[arg-type]
        norm.bias,  # type: ignore[arg-type]
        eps=norm.eps,  # type: ignore[arg-type]
    )
