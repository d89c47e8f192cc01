"""The one training loop, used by every method; what differs between methods is in its hooks.

Speed comes from bfloat16 autocast where the hardware has it, channels-last images and weights, a
fused optimizer, and metrics that stay on the device: the host waits for it once per epoch.
"""

from __future__ import annotations

import contextlib
import logging
import math
from typing import TYPE_CHECKING, Any

import attrs
import torch

from backdoorkit._modes import channels_last_weights, modes_kept
from backdoorkit._optimization import (
    lay_out_gradients,
    learning_rate_at,
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
    steps_per_epoch,
)
from backdoorkit._precision import autocast, resolve_precision, supports_bfloat16
from backdoorkit._progress import SILENT, Progress
from backdoorkit._team import Share, current_team, summed
from backdoorkit._training_hooks import (
    CheckpointSlot,
    EpochMetrics,
    TrainingHooks,
    TrainingSummary,
)
from backdoorkit.data.augmentation import Augmentation
from backdoorkit.data.batches import Batch, batches
from backdoorkit.errors import ContractError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Generator, Tensor, nn

    from backdoorkit._team import Team
    from backdoorkit.data.images import ImageSet
    from backdoorkit.hooks.shared_options import TrainOptions

__all__ = [
    "CheckpointSlot",
    "EpochMetrics",
    "Progress",
    "TrainingHooks",
    "TrainingSummary",
    "fit",
    "learning_rate_at",
    "resolve_precision",
    "supports_bfloat16",
]

_log = logging.getLogger(__name__)


def fit(
    model: nn.Module,
    data: ImageSet,
    options: TrainOptions,
    *,
    device: torch.device,
    shuffle_generator: Generator,
    augmentation_generator: Generator,
    hooks: TrainingHooks | None = None,
    progress: Progress | None = None,
    checkpoint: CheckpointSlot | None = None,
    label: str = "training",
) -> TrainingSummary:
    """Train ``model`` in place on ``data`` and say what was done.

    Only parameters that require a gradient change; batch-norm statistics follow as usual. The
    model is moved to ``device``; its modules' train/eval modes, the weights' memory layout and
    torch's own random state are afterwards what they were. With ``checkpoint``, an interrupted
    training continues after its last kept epoch with the same bits (on a CPU) as if it had not
    been interrupted.

    Raises
    ------
    InputError
        if ``data`` is empty or options contradict each other
    ContractError
        if the loss is not finite, nothing in the model can be trained, or a training with hooks is
        to be shared by several processes

    """
    team = current_team()
    if team is not None and hooks is not None:
        raise ContractError("hooks see whole batches, so their training cannot be shared")
    hooks = TrainingHooks() if hooks is None else hooks
    hooks.options, hooks.model = options, model
    if options.epochs == 0:
        return TrainingSummary()
    if len(data) == 0:
        raise InputError("expected at least one training image, got an empty set")
    model.to(device)
    generators = {"shuffle": shuffle_generator, "augmentation": augmentation_generator}
    forked = [device] if device.type == "cuda" else []
    with (
        channels_last_weights(model),
        modes_kept(model),
        torch.random.fork_rng(forked),
        contextlib.nullcontext(model) if team is None else team.training(model, device) as forward,
    ):
        loop = _Loop(model, forward, data.to(device), options, device, hooks, generators, team)
        return loop.run(SILENT if progress is None else progress, checkpoint, label)


class _Loop:
    """One call of :func:`fit` while it runs."""

    def __init__(
        self,
        model: nn.Module,
        forward: nn.Module,
        data: ImageSet,
        options: TrainOptions,
        device: torch.device,
        hooks: TrainingHooks,
        generators: dict[str, Generator],
        team: Team | None,
    ) -> None:
        self.model = model
        self.forward: Callable[[Tensor], Tensor] = (
            torch.compile(forward) if options.compile else forward
        )
        self.team = team
        self.data = data
        self.options = options
        self.device = device
        self.hooks = hooks
        self.precision = resolve_precision(options.precision, device)
        self.optimizer = make_optimizer(model, options)
        self.steps_per_epoch = steps_per_epoch(len(data), options.batch_size)
        self.generators = generators
        self.summary = TrainingSummary()
        self.samples_seen = 0

    def run(
        self, progress: Progress, checkpoint: CheckpointSlot | None, label: str
    ) -> TrainingSummary:
        if checkpoint is not None and (kept := checkpoint.load()) is not None:
            self.resume(*kept)
        most = self.options.epochs * self.steps_per_epoch
        task = progress.start(label, None if self.hooks.ends_early else most)
        progress.advance(task, self.summary.gradient_steps)
        try:
            while self.summary.epochs_run < self.options.epochs and not self.summary.stopped_early:
                self.run_epoch(lambda: progress.advance(task))
                if checkpoint is not None:
                    checkpoint.save(*self.state())
        finally:
            progress.finish(task)
            self.optimizer.zero_grad(set_to_none=True)
        return self.summary

    def run_epoch(self, advance: Callable[[], None]) -> None:
        epoch = self.summary.epochs_run
        self.model.train()
        self.seed_layers()
        loss_total = torch.zeros((), device=self.device)
        correct_total = torch.zeros((), device=self.device)
        images_total = 0
        step = epoch * self.steps_per_epoch
        for batch in self.batches(epoch):
            share = self.share(self.hooks.transform_batch(batch, epoch))
            loss, logits = self.step(share, epoch, step)
            loss_total += loss * share.whole
            correct_total += (logits.argmax(dim=1) == share.batch.labels).sum() / share.holders
            images_total += share.whole
            step += 1
            advance()
        totals = torch.stack([loss_total, correct_total])
        if self.team is not None:
            totals = summed(totals)
            # Losses were weighted for a mean over processes.
            totals[0] /= self.team.size
        # The only place of an epoch where the host waits for the device.
        loss_sum, correct = totals.tolist()
        if not math.isfinite(loss_sum):
            raise ContractError(
                f"training diverged in epoch {epoch + 1}: the loss is {loss_sum}; lower the "
                f"learning rate (now {self.options.learning_rate:g})"
            )
        rate = self.optimizer.param_groups[0]["lr"]
        self.end_epoch(EpochMetrics(loss_sum / images_total, correct / images_total, rate), step)

    def share(self, batch: Batch) -> Share:
        return Share(batch, len(batch)) if self.team is None else self.team.share(batch)

    def seed_layers(self) -> None:
        """Make dropout and its like repeatable: they can only draw from torch's own generator.

        That generator is put back as it was when the training ends.
        """
        generator = self.generators["shuffle"]
        seed = torch.randint(2**63 - 1, (), generator=generator, device=generator.device)
        # Each process of a team drops other units: its images are others.
        torch.manual_seed(int(seed) + (0 if self.team is None else self.team.rank))

    def batches(self, epoch: int) -> Iterator[Batch]:
        options = self.options
        augmentation = Augmentation(
            crop_padding=options.crop_padding, horizontal_flip=options.horizontal_flip
        )
        is_augmented = options.crop_padding > 0 or options.horizontal_flip
        # Images stay bytes up to the augmentation, unless a hook wants to see them before.
        is_early = type(self.hooks).before_augmentation is not TrainingHooks.before_augmentation
        found = batches(
            self.data,
            options.batch_size,
            generator=self.generators["shuffle"],
            augmentation=augmentation if is_augmented and not is_early else None,
            augmentation_generator=self.generators["augmentation"],
            device=self.device,
            # Batch norm cannot train on one image; batches of one were asked for by name.
            merge_singleton=options.batch_size > 1,
        )
        if not is_early:
            yield from found
            return
        for batch in found:
            changed = self.hooks.before_augmentation(batch, epoch)
            images = augmentation(changed.images, self.generators["augmentation"])
            yield attrs.evolve(changed, images=images)

    def step(self, share: Share, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        batch, images = share.batch, share.batch.images
        if images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        outputs: list[Tensor] = []

        def compute_loss() -> Tensor:
            # Leaving autocast drops its cast copies of the weights, which may change in between.
            with autocast(self.device, self.precision):
                logits = self.forward(images).float()
                loss = self.hooks.loss(logits, batch, epoch)
            outputs.append(logits.detach())
            self.samples_seen += share.whole
            return loss if share.weight == 1 else loss * share.weight

        rate = learning_rate_at(self.options, step, self.options.epochs * self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.hooks.backward(self.model, batch, compute_loss)
        lay_out_gradients(self.optimizer)
        self.optimizer.step()
        with torch.no_grad():
            self.hooks.after_step(self.model)
        return loss.detach(), outputs[0]

    def end_epoch(self, metrics: EpochMetrics, steps: int) -> None:
        epoch = self.summary.epochs_run
        _log.debug("epoch %d: loss %.4f, accuracy %.4f", epoch, metrics.loss, metrics.accuracy)
        stop = self.hooks.after_epoch(self.model, epoch, metrics)
        self.summary = TrainingSummary(
            epochs_run=epoch + 1,
            stopped_early=bool(stop) and epoch + 1 < self.options.epochs,
            history=(*self.summary.history, metrics),
            samples_seen=self.samples_seen,
            gradient_steps=steps,
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {
            **_prefixed("model", _model_state(self.model)),
            **_prefixed("optimizer", optimizer_state(self.optimizer)),
            **_prefixed("generator", {k: g.get_state() for k, g in self.generators.items()}),
            **_prefixed("hooks", self.hooks.state()),
        }
        # Files hold tensors in their plain order, whatever the layout in memory.
        return {key: value.contiguous() for key, value in tensors.items()}, attrs.asdict(
            self.summary
        )

    def resume(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        kept = _stripped("model", tensors)
        own = _model_state(self.model)
        if {name: value.shape for name, value in kept.items()} != {
            name: value.shape for name, value in own.items()
        }:
            raise ContractError(
                "the kept checkpoint is of another model than the one to be trained; "
                "clear the checkpoint slot to begin anew"
            )
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(kept[name])
        load_optimizer_state(self.optimizer, _stripped("optimizer", tensors))
        for name, generator in self.generators.items():
            generator.set_state(tensors[f"generator.{name}"].cpu())
        self.hooks.load_state(_stripped("hooks", tensors))
        history = tuple(EpochMetrics(**metrics) for metrics in facts["history"])
        self.summary = TrainingSummary(**{**facts, "history": history})
        self.samples_seen = self.summary.samples_seen


def _model_state(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, also the buffers that are left out of files."""
    return {
        **{name: parameter.detach() for name, parameter in model.named_parameters()},
        **dict(model.named_buffers()),
    }


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def _stripped(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {
        name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)
    }
