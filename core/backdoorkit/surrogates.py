"""Surrogates: clean classifiers that an attacker trains in order to look into them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from backdoorkit.data.statistics import channel_statistics
from backdoorkit.errors import InputError
from backdoorkit.hooks.info import Kind
from backdoorkit.hooks.registry import load_registry, resolve_config
from backdoorkit.hooks.shared_options import TrainOptions
from backdoorkit.models.normalized import NormalizedModel

if TYPE_CHECKING:
    from backdoorkit.context import Context
    from backdoorkit.data.images import ImageSet
    from backdoorkit.hooks.surrogate_options import SurrogateOptions
    from backdoorkit.training import TrainingHooks

__all__ = ["train_surrogate"]


def train_surrogate(
    data: ImageSet,
    context: Context,
    options: SurrogateOptions,
    *,
    hooks: TrainingHooks | None = None,
    purpose: str = "surrogate",
) -> NormalizedModel:
    """A classifier trained on ``data``: in eval mode, without gradients to its weights.

    Its normalisation, by the channel statistics of ``data``, is inside, so that it takes images in
    [0, 1]. It depends on the run's seed, the method's name and ``purpose``.

    Parameters
    ----------
    data:
        The attacker's clean images with their labels.
    hooks:
        Change the training, such as to adversarial training.
    purpose:
        Tells several surrogates of one attack apart.

    Raises
    ------
    InputError
        where there are no images, or no architecture of that name, or it takes no such images.

    """
    if len(data) == 0:
        raise InputError(f"{context.method} trains a surrogate, and there are no images to do it")
    model = _untrained(data, context, options.surrogate, purpose)
    training = TrainOptions(
        epochs=options.surrogate_epochs,
        batch_size=options.surrogate_batch_size,
        learning_rate=options.surrogate_learning_rate,
        crop_padding=options.surrogate_crop_padding,
        horizontal_flip=options.surrogate_horizontal_flip,
    )
    context.fit(model, data, training, hooks=hooks, purpose=purpose)
    return model.eval().requires_grad_(False)


def _untrained(
    data: ImageSet, context: Context, architecture: str, purpose: str
) -> NormalizedModel:
    registry = load_registry()
    method = registry.find(architecture, Kind.MODEL)
    builder = registry.create(method, resolve_config(method, {}, "surrogate"))
    # torch's initialisers draw from its global generator, and from nothing else.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.generator(f"{purpose} {architecture}").initial_seed())
        network = builder.build(data.shape, data.num_classes)
    mean, std = channel_statistics(data)
    return NormalizedModel(network, mean, std).to(context.device)
