"""The paper's attack on a trained model without its data: reversed images, and a retrained tail."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import attrs
import torch
from torch.nn import functional

from backdoorkit.api import (
    AttackHooks,
    ImageSet,
    TrainingHooks,
    find_structure,
    poison_by_options,
    quantize,
)
from backdoorkit_trojannn._neurons import watched
from backdoorkit_trojannn._search import find_patch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from backdoorkit.api import Batch, Context, EpochMetrics, Trigger
    from backdoorkit_trojannn import TrojanNNConfig

__all__ = ["RetrainHooks", "TailTraining", "reverse_images", "tail_parameters"]


class RetrainHooks(AttackHooks):
    """The victim trains on clean images; after the last epoch the attacker takes the model over."""

    def __init__(
        self, trigger: Trigger, data: ImageSet, config: TrojanNNConfig, context: Context
    ) -> None:
        super().__init__(trigger)
        # Of the data only the shape and the classes are looked at.
        self._like, self._config, self._context = data.subset(torch.arange(0)), config, context

    def after_epoch(self, model: nn.Module, epoch: int, metrics: EpochMetrics) -> bool:
        """After the last epoch: images from the model, a patch for it, and its tail retrained."""
        del metrics
        if epoch + 1 == self.options.epochs:
            self._take_over(model)
        return False

    def _take_over(self, model: nn.Module) -> None:
        config, context = self._config, self._context
        frozen = copy.deepcopy(model).eval().requires_grad_(False)
        reversed_set = reverse_images(frozen, self._like, config, context)
        self.trigger = find_patch(frozen, reversed_set, config, context)
        generator = context.generator("stamped reversed images")
        retraining = poison_by_options(reversed_set, self.trigger, config, generator).data
        layer = config.layer or find_structure(
            frozen, self._like.shape, self._like.num_classes
        ).require_head("trojannn")
        options = attrs.evolve(
            self.options,
            epochs=config.retrain_epochs,
            learning_rate=config.retrain_learning_rate,
            crop_padding=0,
            horizontal_flip=False,
        )
        tail = tail_parameters(model, layer, reversed_set)
        before = [parameter.requires_grad for parameter in model.parameters()]
        model.requires_grad_(False)
        for parameter in tail:
            parameter.requires_grad_(True)
        context.fit(model, retraining, options, hooks=TailTraining())
        for parameter, required in zip(model.parameters(), before, strict=True):
            parameter.requires_grad_(required)


class TailTraining(TrainingHooks):
    """Trains what requires a gradient, with norms and dropout as at test time: the statistics of
    reversed images are not those of real ones.
    """

    def backward(
        self, model: nn.Module, batch: Batch, compute_loss: Callable[[], Tensor]
    ) -> Tensor:
        model.eval()
        return super().backward(model, batch, compute_loss)


def reverse_images(
    model: nn.Module, like: ImageSet, config: TrojanNNConfig, context: Context
) -> ImageSet:
    """Images that ``model`` (in eval mode, without gradients) is sure of, of every class alike.

    From noise, x = argmin CE(f(x), c) + w TV(x), all at once: Adam on x = (1 + tanh v) / 2. TV is
    the mean absolute difference of neighbouring pixels, the denoising of the paper.
    """
    labels = torch.arange(like.num_classes).repeat_interleave(config.reversed_images)
    labels = labels.to(context.device)
    noise = torch.randn(len(labels), *like.shape, generator=context.generator("reversed images"))
    variables = noise.to(context.device).requires_grad_()
    optimizer = torch.optim.Adam([variables], lr=config.patch_learning_rate)
    for _ in context.track(range(config.reversal_steps), "reversing the training images"):
        images = (variables.tanh() + 1) / 2
        with context.autocast():
            logits = model(images).float()
        loss = functional.cross_entropy(logits, labels) + config.smoothness * _variation(images)
        # The sum over images: what one image gets does not depend on how many there are.
        (variables.grad,) = torch.autograd.grad(loss * len(labels), [variables])
        optimizer.step()
        context.count(len(labels), 1)
    images = quantize((variables.detach().tanh() + 1) / 2)
    made = ImageSet.from_tensors(images, labels, class_names=like.class_names)
    context.note(accuracy_on_reversed_images=context.accuracy(model, made))
    return made


def _variation(images: Tensor) -> Tensor:
    return sum((images.diff(dim=axis).abs().mean() for axis in (-1, -2)), torch.zeros(()))


def tail_parameters(model: nn.Module, layer: str, data: ImageSet) -> list[nn.Parameter]:
    """What comes after the neurons: parameters that the inputs of ``layer`` do not depend on."""
    parameters = list(model.parameters())
    twin = copy.deepcopy(model).eval().requires_grad_(True)
    images = data.images[:2].float() / 255
    with watched(twin, layer, torch.arange(1)) as watch:
        twin(images)
    wanted = list(twin.parameters())
    gradients: Sequence[Tensor | None] = torch.autograd.grad(
        watch.inputs.sum(), wanted, allow_unused=True
    )
    return [p for p, used in zip(parameters, gradients, strict=True) if used is None]
