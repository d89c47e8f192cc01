"""i-BAU: find the perturbation that moves all images most, train against it, begin again."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from backdoorkit.api import Augmentation, Defense, DefenseResult, InputError, batches
from backdoorkit_ibau import IBAUConfig
from backdoorkit_ibau._perturbation import answers, find_perturbation
from backdoorkit_ibau._unlearning import make_optimizer, require_derivatives, unlearn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Generator, Tensor, nn

    from backdoorkit.api import Batch, Context, DefenseTask, ImageSet

__all__ = ["IBAU"]

_log = logging.getLogger(__name__)

#: images on which derivatives are tried before anything is spent
_TRIED = 2


class IBAU(Defense[IBAUConfig]):
    """The unknown trigger is looked for as the universal perturbation that hurts most.

    Each round finds one by ascent from zero, and trains for one pass against it. The gradient of
    the weights accounts for how the perturbation would answer their change. The model is in eval
    mode throughout: batch-norm statistics stay as they are, and dropout is off.
    """

    def run(self, task: DefenseTask, context: Context) -> DefenseResult:
        if not len(task.clean):
            raise InputError("ibau needs clean samples, but the reserve is empty; raise its size")
        model = task.model.to(context.device).eval()
        # Shuffled, once: reserves may be sorted by class, and the first batch stands for all.
        order = torch.randperm(len(task.clean), generator=context.generator("order"))
        reserve = task.clean.to(context.device).subset(order)
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            tried = next(batches(reserve, _TRIED, device=context.device))
            require_derivatives(model, tried.images, tried.labels, second=self.config.implicit)
            rounds, perturbations = self._rounds(model, reserve, task.num_classes, context)
            accuracy = context.accuracy(model, reserve)
        details = {"rounds": rounds, "reserve_accuracy": accuracy}
        tensors = {"perturbations": torch.cat(perturbations)} if perturbations else {}
        return DefenseResult(model=model, details=details, tensors=tensors)

    def _rounds(
        self, model: nn.Module, reserve: ImageSet, num_classes: int, context: Context
    ) -> tuple[list[dict[str, Any]], list[Tensor]]:
        """All rounds; what each has to tell, and its perturbation (1 x C x H x W)."""
        config, labels = self.config, reserve.labels.to(context.device)
        optimizer = make_optimizer(model, config)
        inner_batch = next(batches(reserve, config.batch_size, device=context.device))
        augmenting, patching = map(context.generator, ("augmentation", "patched images"))

        def one_pass() -> Iterator[Batch]:
            return self._one_pass(reserve, augmenting, context)

        start = torch.zeros(1, *reserve.shape, device=context.device)
        steps = math.ceil(len(reserve) / config.batch_size)
        rounds: list[dict[str, Any]] = []
        perturbations: list[Tensor] = []
        for number in range(1, config.rounds + 1):
            clean = context.predict(model, reserve).argmax(dim=1)
            delta = find_perturbation(model, one_pass, clean, start, config, context)
            found = answers(model, reserve, delta, config, context)
            drawn = context.track(one_pass(), "unlearning", steps)
            loss = unlearn(model, optimizer, drawn, inner_batch, delta, patching, config, context)
            left = answers(model, reserve, delta, config, context)
            told = {
                "reserve_accuracy": _share(clean == labels),
                "perturbation_norm": float(delta.norm()),
                "moved": _share(found != clean),
                "predictions": torch.bincount(found, minlength=num_classes).tolist(),
                "predictions_after": torch.bincount(left, minlength=num_classes).tolist(),
                "loss": loss,
            }
            _log.info("ibau: round %d of %d: %s", number, config.rounds, told)
            rounds.append(told)
            perturbations.append(delta)
        return rounds, perturbations

    def _one_pass(
        self, reserve: ImageSet, augmenting: Generator, context: Context
    ) -> Iterator[Batch]:
        """The batches of one pass, always the same ones, augmented anew."""
        config = self.config
        return batches(
            reserve,
            config.batch_size,
            augmentation=Augmentation(
                crop_padding=config.crop_padding, horizontal_flip=config.horizontal_flip
            ),
            augmentation_generator=augmenting,
            device=context.device,
        )


def _share(marks: Tensor) -> float:
    return float(marks.float().mean())
