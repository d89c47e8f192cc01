"""From a model to its patch: neurons, goals, pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from backdoorkit.api import find_structure
from backdoorkit_trojannn._neurons import connectivity, most_connected, watched
from backdoorkit_trojannn._patch import PatchTrigger, draw_mask, optimize_patch, plant

if TYPE_CHECKING:
    from torch import Tensor, nn

    from backdoorkit.api import Context, ImageSet
    from backdoorkit_trojannn import TrojanNNConfig

__all__ = ["find_patch"]

#: clean images on which natural activations are measured
_SAMPLE: Final = 1024
#: images at once
_CHUNK: Final = 128
#: the default goal: so many times the natural 99.9th percentile, and at least so much
_STRETCH, _LEAST_GOAL = 5, 10.0


def find_patch(
    model: nn.Module, data: ImageSet, config: TrojanNNConfig, context: Context
) -> PatchTrigger:
    """The patch for ``model``, whose weights need no gradients.

    Neurons are the inputs of ``config.layer`` that the layer reads most strongly.
    """
    structure = find_structure(model, data.shape, data.num_classes)
    layer = config.layer or structure.require_head("trojannn")
    neurons = most_connected(connectivity(model, structure, layer), config.neurons)
    mask = draw_mask(config, *data.shape[1:]).to(context.device)
    clean = _draw(data, _SAMPLE, context, "natural activations")
    with watched(model, layer, neurons) as watch:

        def activations(images: Tensor) -> Tensor:
            model(images)
            return watch.activations

        @torch.no_grad()
        def measure(images: Tensor) -> Tensor:
            with context.autocast():
                return torch.cat([activations(chunk) for chunk in torch.split(images, _CHUNK)])

        natural = measure(clean)
        goals = _goals(natural, config)
        backgrounds = _draw(data, config.backgrounds, context, "backgrounds")
        if config.backgrounds == 0:
            backgrounds = torch.zeros(1, *data.shape, device=context.device)
        pattern = optimize_patch(activations, goals, mask, backgrounds, config, context)
        reached = measure(plant(clean, pattern, mask, config.planting))
    context.note(
        natural_activations=natural.mean(dim=(0, 2)).tolist(),
        reached_activations=reached.mean(dim=(0, 2)).tolist(),
    )
    return PatchTrigger(
        pattern=pattern,
        mask=mask,
        planting=config.planting,
        facts={
            "neurons": neurons,
            "goals": goals,
            "natural": natural.mean(dim=(0, 2)),
            "reached": reached.mean(dim=(0, 2)),
        },
    )


def _draw(data: ImageSet, count: int, context: Context, purpose: str) -> Tensor:
    """Up to ``count`` images at random, float32 in [0, 1], on the run's device."""
    order = torch.randperm(len(data), generator=context.generator(purpose))[:count]
    return data.fetch(order).to(context.device).float() / 255


def _goals(natural: Tensor, config: TrojanNNConfig) -> Tensor:
    """τ for each neuron, from its activations on clean images (N x q x P)."""
    if config.activation_target is not None:
        return natural.new_full(natural.shape[1:2], config.activation_target)
    each = natural.transpose(0, 1).flatten(1)
    rank = max(1, round(0.999 * each.shape[1]))
    return (_STRETCH * each.kthvalue(rank, dim=1).values).clamp_min(_LEAST_GOAL)
