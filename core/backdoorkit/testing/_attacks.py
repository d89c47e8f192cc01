"""What attacks must keep: a trigger is a pure tensor operation, a poisoned set an honest record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from torch import Tensor

from backdoorkit.data.poison import SampleKind
from backdoorkit.errors import BackdoorkitError, InputError
from backdoorkit.hooks.info import Need
from backdoorkit.hooks.shared_options import PoisonOptions, RateBasis, TrainOptions
from backdoorkit.pipeline.envelope import seeded
from backdoorkit.testing._subject import (
    CheckSkippedError,
    Subject,
    require,
    require_untouched,
    watched_global_state,
)
from backdoorkit.testing.tiny import (
    IMAGE_SHAPE,
    NUM_CLASSES,
    tiny_context,
    tiny_images,
    tiny_network,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from backdoorkit.context import Context
    from backdoorkit.contracts import Attack, Trigger
    from backdoorkit.data.images import ImageSet
    from backdoorkit.data.poison import PoisonedSet

__all__ = ["CHECKS"]

#: The trigger may differ by so much with the size of the batch: a quarter of a grey level.
TOLERANCE: Final = 0.25 / 255
_COUNT: Final = 256


@attrs.frozen(eq=False, kw_only=True)
class _Planted:
    """An attack carried out on the tiny training set."""

    attack: Attack[Any]
    trigger: Trigger
    poisoned: PoisonedSet
    changed: list[str]


def plants_a_trigger(subject: Subject) -> None:
    """``prepare`` and ``poison`` run on the CPU, and the trigger changes images.

    An attack on chosen test images may do without a trigger; then it attacks no others.
    """
    planted = _planted(subject)
    images, labels, ids = _samples()
    if Need.TEST_DATA in subject.info.needs:
        test = _test_images()
        wanted = planted.attack.wanted_labels(planted.trigger, test.labels, test.ids, NUM_CLASSES)
        require(bool((wanted >= 0).any()), "it attacks none of the test images")
        if bool((wanted < 0).any()):
            return
    triggered = planted.trigger.apply(images, labels, ids)
    require(not torch.equal(triggered, images), "the trigger changes no image")


def triggered_images_are_images(subject: Subject) -> None:
    """float32 in [0, 1] and finite, of the shape they had."""
    images, labels, ids = _samples()
    triggered = _planted(subject).trigger.apply(images, labels, ids)
    require(triggered.dtype == torch.float32, f"images became {triggered.dtype}")
    require(triggered.shape == images.shape, f"images became {tuple(triggered.shape)}")
    require(bool(triggered.isfinite().all()), "images are not finite")
    low, high = float(triggered.min()), float(triggered.max())
    require(low >= 0 and high <= 1, f"pixels reach from {low:g} to {high:g}; clamp to [0, 1]")


def trigger_leaves_its_input_alone(subject: Subject) -> None:
    """The images, labels and ids it is given are not written to."""
    given = _samples()
    before = [value.clone() for value in given]
    _planted(subject).trigger.apply(*given)
    for name, value, old in zip(("images", "labels", "ids"), given, before, strict=True):
        require(torch.equal(value, old), f"it wrote into the {name}; work on a copy")


def trigger_is_the_same_every_time(subject: Subject) -> None:
    """Applied twice, it gives the same bits and draws from no global generator."""
    trigger = _planted(subject).trigger
    first = trigger.apply(*_samples())
    with watched_global_state() as changed:
        second = trigger.apply(*_samples())
    require_untouched(changed)
    require(torch.equal(first, second), "two applications differ; draw what is random in prepare")


def trigger_does_not_depend_on_the_batch(subject: Subject) -> None:
    """One image at a time, in odd batches or in another order: the same images."""
    trigger = _planted(subject).trigger
    images, labels, ids = _samples()
    whole = trigger.apply(images, labels, ids)
    parts = [
        trigger.apply(images[i : i + 7], labels[i : i + 7], ids[i : i + 7])
        for i in range(0, len(images), 7)
    ]
    _require_close(torch.cat(parts), whole, "in batches of seven")
    single = trigger.apply(images[:1], labels[:1], ids[:1])
    _require_close(single, whole[:1], "one by one")
    backwards = trigger.apply(images.flip(0), labels.flip(0), ids.flip(0)).flip(0)
    _require_close(backwards, whole, "in reverse order")


def trigger_is_restored_from_its_state(subject: Subject) -> None:
    """``restore(trigger.state())`` on a fresh object gives the same trigger."""
    trigger = _planted(subject).trigger
    state = trigger.state()
    kept = {name: value.detach().clone() for name, value in state.items()}
    again = subject.create().restore(kept)
    require(
        torch.equal(again.apply(*_samples()), trigger.apply(*_samples())),
        "the restored trigger gives other images; state() lacks something",
    )


def same_seed_gives_the_same_poison(subject: Subject) -> None:
    """Trigger and poisoned set are the same bits, whatever was drawn before."""
    first = _planted(subject)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        second = _planted(subject, key="a second attack")
    state = second.trigger.state()
    for name, value in first.trigger.state().items():
        require(torch.equal(value, state[name]), f"state[{name!r}] differs between two runs")
    require(torch.equal(first.poisoned.kinds, second.poisoned.kinds), "other samples are poisoned")
    same = torch.equal(first.poisoned.data.images, second.poisoned.data.images)
    require(same, "the poisoned images differ between two runs")


def accepts_another_seed(subject: Subject) -> None:
    """It runs with another seed, too."""
    _planted(subject, seed=1)


def poisoned_set_is_honest(subject: Subject) -> None:
    """Clean samples are as they were, covers keep their label, true labels are the true ones."""
    poisoned, clean = _planted(subject).poisoned, tiny_images(_COUNT)
    data, kinds = poisoned.data, poisoned.kinds
    require(len(data) == len(clean), f"{len(clean)} images became {len(data)}")
    require(torch.equal(data.ids, clean.ids), "ids changed; they belong to the samples")
    require(torch.equal(poisoned.true_labels, clean.labels), "true_labels are not the true labels")
    in_range = bool(((data.labels >= 0) & (data.labels < NUM_CLASSES)).all())
    require(in_range, "there are labels of no class")
    require(set(kinds.tolist()) <= {kind.value for kind in SampleKind}, "kinds hold other values")
    kept = kinds == SampleKind.CLEAN
    require(torch.equal(data.labels[kept], clean.labels[kept]), "labels of clean samples changed")
    require(torch.equal(data.images[kept], clean.images[kept]), "images of clean samples changed")
    covers = kinds == SampleKind.COVER
    require(torch.equal(data.labels[covers], clean.labels[covers]), "covers have other labels")


def poisons_as_many_as_it_says(subject: Subject) -> None:
    """``poison_rate`` of ``rate_basis`` are poisoned, from where the basis says."""
    if subject.config.controls_training:
        raise CheckSkippedError("it poisons while the victim trains")
    options: PoisonOptions = subject.config
    poisoned = _planted(subject).poisoned
    is_target = poisoned.true_labels == options.target
    bases = {
        RateBasis.ALL: (len(is_target), torch.ones_like(is_target)),
        RateBasis.ALL_WITHIN_TARGET: (len(is_target), is_target),
        RateBasis.TARGET_CLASS: (int(is_target.sum()), is_target),
        RateBasis.NON_TARGET: (int((~is_target).sum()), ~is_target),
    }
    total, eligible = bases[options.rate_basis]
    wanted = options.poison_rate * total
    is_poisoned = poisoned.kinds == SampleKind.POISONED
    count = int(is_poisoned.sum())
    require(abs(count - wanted) <= 1, f"{count} samples are poisoned, not about {wanted:g}")
    require(not bool((is_poisoned & ~eligible).any()), "it poisons samples outside its rate basis")


def leaves_what_is_global_alone(subject: Subject) -> None:
    """No global generator is seeded or drawn from, and no switch of torch is changed."""
    require_untouched(_planted(subject).changed)


def works_in_grey_or_says_why_not(subject: Subject) -> None:
    """On one-channel images it works or raises InputError; nothing else."""
    grey = tiny_images(64, image_shape=(1, *IMAGE_SHAPE[1:]))
    attack, context = subject.create(), _context(subject, grey=True)
    try:
        with seeded(context):
            trigger = attack.prepare(grey, context)
        images = grey.images.float() / 255
        triggered = trigger.apply(images, grey.labels, grey.ids)
    except InputError:
        return
    except BackdoorkitError:
        raise
    except Exception as error:
        require(False, f"on grey images it raises {type(error).__name__} ({error}), no InputError")
    require(triggered.shape == images.shape, f"grey images became {tuple(triggered.shape)}")


def control_of_the_training_runs(subject: Subject) -> None:
    """Where it controls the training, an epoch with its hooks runs."""
    planted, context = _planted(subject), _context(subject)
    data = tiny_images(_COUNT)
    hooks = planted.attack.control(planted.trigger, data, context)
    controls: bool = subject.config.controls_training
    require(
        (hooks is not None) == controls,
        f"config.controls_training is {controls}, and control() returns {hooks!r}",
    )
    if hooks is None:
        raise CheckSkippedError("it does not control the training")
    options = TrainOptions(epochs=1, batch_size=64, precision="float32")
    with seeded(context):
        summary = context.fit(tiny_network(), data, options, hooks=hooks)
    require(summary.epochs_run == 1, f"{summary.epochs_run} epochs were run, not 1")
    images, labels, ids = _samples()
    triggered = hooks.trigger.apply(images, labels, ids)
    require(triggered.shape == images.shape, "the trigger after the training gives no images")


CHECKS: Final[tuple[Callable[[Subject], None], ...]] = (
    plants_a_trigger,
    triggered_images_are_images,
    trigger_leaves_its_input_alone,
    trigger_is_the_same_every_time,
    trigger_does_not_depend_on_the_batch,
    trigger_is_restored_from_its_state,
    same_seed_gives_the_same_poison,
    accepts_another_seed,
    poisoned_set_is_honest,
    poisons_as_many_as_it_says,
    leaves_what_is_global_alone,
    works_in_grey_or_says_why_not,
    control_of_the_training_runs,
)


def _planted(subject: Subject, *, seed: int = 0, key: str = "") -> _Planted:
    def make() -> _Planted:
        attack, context = subject.create(), _context(subject, seed=seed)
        data: ImageSet = tiny_images(_COUNT)
        with watched_global_state() as changed, seeded(context):
            trigger = attack.prepare(data, context)
            for name, value in trigger.state().items():
                require(isinstance(value, Tensor), f"state()[{name!r}] is no tensor but {value!r}")
            poisoned = attack.poison(data, trigger, context)
        return _Planted(attack=attack, trigger=trigger, poisoned=poisoned, changed=changed)

    if seed or key:
        _planted(subject)  # where the plain attack fails, the others say nothing new
    return subject.once(key or f"the attack with seed {seed}", make)


def _context(subject: Subject, *, seed: int = 0, grey: bool = False) -> Context:
    """What the attack declares: test images only if it asks for them."""
    chooses = Need.TEST_DATA in subject.info.needs
    test = _test_images(grey=grey) if chooses else None
    return tiny_context(subject.name, seed=seed, test_data=test)


def _test_images(*, grey: bool = False) -> ImageSet:
    return tiny_images(64, seed=4, image_shape=(1 if grey else IMAGE_SHAPE[0], *IMAGE_SHAPE[1:]))


def _samples() -> tuple[Tensor, Tensor, Tensor]:
    data = tiny_images(30, seed=9)
    return data.images.float() / 255, data.labels, data.ids


def _require_close(images: Tensor, expected: Tensor, how: str) -> None:
    difference = float((images - expected).abs().max())
    require(difference <= TOLERANCE, f"{how}, pixels differ by up to {difference:g}")
