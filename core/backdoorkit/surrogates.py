"""Surrogates: clean classifiers that an attacker trains in order to look into them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from backdoorkit.data.statistics import channel_statistics
from backdoorkit.errors import InputError
from backdoorkit.hooks.info import Kind
from backdoorkit.hooks.options import unstructure
from backdoorkit.hooks.registry import load_registry, resolve_config
from backdoorkit.hooks.shared_options import TrainOptions
from backdoorkit.models.normalized import NormalizedModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

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
    facts: Mapping[str, Any] | None = None,
    name: str = "surrogate",
) -> NormalizedModel:
    """A classifier trained on ``data``: in eval mode, without gradients to its weights.

    Its normalisation, by the channel statistics of ``data``, is inside, so that it takes images in
    [0, 1]. It is an asset (:meth:`backdoorkit.api.Context.asset`): a later run of the same attack
    with the same options finds it in the store.

    Parameters
    ----------
    data:
        The attacker's clean images with their labels.
    hooks:
        Change the training, such as to adversarial training.
    facts:
        JSON-ready, every option that ``hooks`` look at.
    name:
        Tells several surrogates of one attack apart.

    Raises
    ------
    InputError
        where there are no images, or no architecture of that name, or it takes no such images.

    """
    if len(data) == 0:
        raise InputError(f"{context.method} trains a surrogate, and there are no images to do it")
    training = TrainOptions(
        epochs=options.surrogate_epochs,
        batch_size=options.surrogate_batch_size,
        learning_rate=options.surrogate_learning_rate,
        crop_padding=options.surrogate_crop_padding,
        horizontal_flip=options.surrogate_horizontal_flip,
    )

    def trained() -> Mapping[str, Tensor]:
        model = _untrained(data, options.surrogate).to(context.device)
        context.fit(model, data, training, hooks=hooks)
        return model.state_dict()

    decided_by = {
        "architecture": options.surrogate,
        "training": unstructure(training),
        "hooks": None if hooks is None else type(hooks).__qualname__,
        **(facts or {}),
    }
    state = context.asset(name, decided_by, trained)
    # torch's initialisers draw from its global generator, for weights that are not kept.
    with torch.random.fork_rng(devices=[]):
        model = _untrained(data, options.surrogate)
    model.load_state_dict(state)
    return model.to(context.device).eval().requires_grad_(False)


def _untrained(data: ImageSet, architecture: str) -> NormalizedModel:
    registry = load_registry()
    method = registry.find(architecture, Kind.MODEL)
    builder = registry.create(method, resolve_config(method, {}, "surrogate"))
    network = builder.build(data.shape, data.num_classes)
    mean, std = channel_statistics(data)
    return NormalizedModel(network, mean, std)
