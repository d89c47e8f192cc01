"""What attacks must keep that control the victim's training."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch

from backdoorkit.hooks.shared_options import TrainOptions
from backdoorkit.pipeline.envelope import seeded
from backdoorkit.testing._planting import (
    COUNT,
    carried_out,
    context_for,
    require_count,
    require_honest,
    samples,
)
from backdoorkit.testing._subject import CheckSkippedError, Subject, require
from backdoorkit.testing.cutting import MemorySlot, TrainingCutError
from backdoorkit.testing.tiny import copy_state, tiny_context, tiny_images, tiny_network

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from backdoorkit.contracts import Attack, Trigger
    from backdoorkit.control import AttackHooks
    from backdoorkit.data.batches import Batch

__all__ = ["CHECKS"]


def control_of_the_training_runs(subject: Subject) -> None:
    """Where it controls the training, two epochs with its hooks run, and leave a trigger."""
    trained = _trained(subject)
    images, labels, ids = samples()
    triggered = trained.trigger.apply(images, labels, ids)
    require(triggered.shape == images.shape, "the trigger after the training gives no images")


def interrupted_control_ends_with_the_same_bits(subject: Subject) -> None:
    """Killed after its first epoch and resumed, it ends with the same model and trigger."""
    whole = _trained(subject)
    slot = MemorySlot()
    with contextlib.suppress(TrainingCutError):
        _train(subject, slot, kill_after=0)
    resumed = _train(subject, slot)
    for name, value in whole.model.items():
        require(
            torch.equal(value, resumed.model[name]),
            f"{name} differs; what the hooks keep between epochs belongs into state()",
        )
    state = resumed.trigger.state()
    for name, value in whole.trigger.state().items():
        require(torch.equal(value, state[name]), f"the trigger's {name!r} differs")


def freezes_a_set_that_is_honest(subject: Subject) -> None:
    """After the training, ``freeze`` makes a poisoned set at the configured and at another rate."""
    trained = _trained(subject)
    for rate in (None, subject.config.poison_rate / 2):
        context = context_for(subject)
        with seeded(context):
            frozen = trained.attack.freeze(tiny_images(COUNT), trained.trigger, context, rate)
        require_honest(frozen, subject.config)
        options = subject.config if rate is None else attrs.evolve(subject.config, poison_rate=rate)
        require_count(frozen, options)


CHECKS: Final[tuple[Callable[[Subject], None], ...]] = (
    control_of_the_training_runs,
    interrupted_control_ends_with_the_same_bits,
    freezes_a_set_that_is_honest,
)


@attrs.frozen(eq=False, kw_only=True)
class _Trained:
    """What a controlled training ended with."""

    attack: Attack[Any]
    trigger: Trigger
    model: dict[str, Tensor]


def _trained(subject: Subject) -> _Trained:
    return subject.once("a controlled training", lambda: _train(subject))


def _train(
    subject: Subject, slot: MemorySlot | None = None, kill_after: int | None = None
) -> _Trained:
    """Two epochs under the attack's control, or less where it is killed."""
    planted, context = carried_out(subject), context_for(subject)
    data, attack = tiny_images(COUNT), subject.create()
    with seeded(context):
        # As in a run: from what was stored.
        trigger = attack.restore({n: v.clone() for n, v in planted.trigger.state().items()})
        hooks = attack.control(trigger, data, context)
    controls: bool = subject.config.controls_training
    require(
        (hooks is not None) == controls,
        f"config.controls_training is {controls}, and control() returns {hooks!r}",
    )
    if hooks is None:
        raise CheckSkippedError("it does not control the training")
    if kill_after is not None:
        _kill(hooks, kill_after)
    options = TrainOptions(epochs=2, batch_size=64, precision="float32")
    model = tiny_network()
    surroundings = tiny_context("victim")
    with seeded(surroundings):
        summary = surroundings.fit(model, data, options, hooks=hooks, checkpoint=slot)
    require(summary.epochs_run == 2, f"{summary.epochs_run} epochs were run, not 2")
    return _Trained(attack=attack, trigger=hooks.trigger, model=copy_state(model))


def _kill(hooks: AttackHooks, last: int) -> None:
    """Let the epoch after the ``last`` begin, and no further."""
    proceed = hooks.transform_batch

    def transform_batch(batch: Batch, epoch: int) -> Batch:
        if epoch > last:
            raise TrainingCutError
        return proceed(batch, epoch)

    hooks.transform_batch = transform_batch  # type: ignore[method-assign]
