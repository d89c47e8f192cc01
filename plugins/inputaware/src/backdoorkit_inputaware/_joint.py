"""The second stage: victim and pattern generator are trained together."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import attrs
import torch

from backdoorkit.api import PerBatchPoisoning, TrainingHooks
from backdoorkit_inputaware._masks import rate_at
from backdoorkit_inputaware._networks import blended, diversity_loss, sharpened

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from backdoorkit.api import Batch, EpochMetrics, ImageSet
    from backdoorkit_inputaware._attack import InputAware, InputAwareTrigger

__all__ = ["JointTraining"]


class JointTraining(PerBatchPoisoning):
    """Of each augmented batch the first rows are poisoned, the next crossed, the rest left alone.

    The image x' whose trigger a cross bears is half a batch away: as good as drawn, since batches
    are shuffled, and augmented already. The victim's loss, in which the triggers are part of the
    images, and the patterns' diversity are one loss for both networks, each with its own optimizer.
    """

    # Triggers are made of images as the victim sees them: after their augmentation.
    before_augmentation = TrainingHooks.before_augmentation

    def __init__(self, attack: InputAware, trigger: InputAwareTrigger, data: ImageSet) -> None:
        super().__init__(attack, trigger, data)
        self._config = attack.config
        self._learned = trigger
        self._patterns = copy.deepcopy(trigger.patterns).train().requires_grad_(True)
        self._optimizer = torch.optim.Adam(
            self._patterns.parameters(), lr=self._config.pattern_learning_rate, betas=(0.5, 0.9)
        )
        self._diversity: Tensor | None = None

    def transform_batch(self, batch: Batch, epoch: int) -> Batch:
        """[T(x); B(x, x'); x] in place of ``batch``, with the way back to the generator."""
        self._set_rate(epoch)
        self._diversity = None
        poisoned, crossed = self.choose(batch)
        count, crosses = len(poisoned.rows), len(crossed.rows)
        if count == 0:
            return batch
        partners = batch.images.roll(-(len(batch) // 2), 0)
        # Diversity compares each poisoned image with a partner, though there be fewer crosses.
        others = torch.cat([crossed.rows, poisoned.rows])[: max(count, crosses)]
        sources = torch.cat([batch.images[poisoned.rows], partners[others]])
        patterns = self._patterns(sources)
        with torch.no_grad():
            masks = sharpened(self._learned.masks(sources))
        self._diversity = diversity_loss(
            sources[:count], sources[count:][:count], patterns[:count], patterns[count:][:count]
        )
        rows, valid = torch.cat([poisoned.rows, crossed.rows]), [poisoned.valid, crossed.valid]
        stored = batch.images[rows]
        made = blended(stored, patterns[: len(rows)], masks[: len(rows)])
        altered = torch.where(torch.cat(valid)[:, None, None, None], made, stored)
        images = batch.images.index_copy(0, rows, altered)
        return attrs.evolve(batch, images=images, labels=self.relabelled(batch, poisoned))

    def loss(self, logits: Tensor, batch: Batch, epoch: int) -> Tensor:
        """Cross-entropy, and the patterns' diversity."""
        loss = super().loss(logits, batch, epoch)
        if self._diversity is None:
            return loss
        return loss + self._config.diversity * self._diversity

    def backward(
        self, model: nn.Module, batch: Batch, compute_loss: Callable[[], Tensor]
    ) -> Tensor:
        """Gradients for both networks."""
        if not self._config.accumulate_gradients:
            self._optimizer.zero_grad(set_to_none=True)
        return super().backward(model, batch, compute_loss)

    def after_step(self, model: nn.Module) -> None:
        """The generator's own step."""
        del model
        self._optimizer.step()

    def after_epoch(self, model: nn.Module, epoch: int, metrics: EpochMetrics) -> bool:
        """The trigger as it is now."""
        del model, epoch, metrics
        self._renew()
        return False

    def state(self) -> dict[str, Tensor]:
        """``patterns.*``, ``optimizer.*``, and ``gradient.*`` where gradients are kept."""
        moments: Mapping[int, Mapping[str, Tensor]] = self._optimizer.state_dict()["state"]
        state = {f"patterns.{name}": value for name, value in self._patterns.state_dict().items()}
        for number, parameter in enumerate(self._patterns.parameters()):
            for name, value in moments.get(number, {}).items():
                state[f"optimizer.{number}.{name}"] = value
            if self._config.accumulate_gradients and parameter.grad is not None:
                state[f"gradient.{number}"] = parameter.grad
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take them back, and the trigger with them."""
        patterns, moments, gradients = (
            {
                name.removeprefix(prefix): value
                for name, value in state.items()
                if name.startswith(prefix)
            }
            for prefix in ("patterns.", "optimizer.", "gradient.")
        )
        self._patterns.load_state_dict(patterns)
        loaded: dict[int, dict[str, Any]] = {}
        for key, value in moments.items():
            number, _, name = key.partition(".")
            loaded.setdefault(int(number), {})[name] = value.clone()
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": loaded, "param_groups": groups})
        parameters = list(self._patterns.parameters())
        for key, value in gradients.items():
            own = parameters[int(key)]
            own.grad = torch.empty_like(own).copy_(value)
        self._renew()

    def _renew(self) -> None:
        patterns = copy.deepcopy(self._patterns).eval().requires_grad_(False)
        self._learned = attrs.evolve(self._learned, patterns=patterns)
        self.trigger = self._learned

    def _set_rate(self, epoch: int) -> None:
        config, progress = self._config, epoch / self.options.epochs
        rate = rate_at(config.pattern_learning_rate, config.pattern_milestones, progress)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
