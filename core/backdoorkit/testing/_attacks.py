"""What attacks must keep: a trigger is a pure tensor operation, a poisoned set an honest record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from backdoorkit.data.choosing import NOT_ATTACKED
from backdoorkit.errors import BackdoorkitError, InputError
from backdoorkit.hooks.info import Need
from backdoorkit.pipeline.envelope import seeded
from backdoorkit.testing import _control
from backdoorkit.testing._planting import (
    carried_out,
    context_for,
    held_out_images,
    require_close,
    require_count,
    require_honest,
    samples,
)
from backdoorkit.testing._subject import (
    CheckSkippedError,
    Subject,
    require,
    require_untouched,
    watched_global_state,
)
from backdoorkit.testing.tiny import IMAGE_SHAPE, NUM_CLASSES, tiny_images

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CHECKS"]


def plants_a_trigger(subject: Subject) -> None:
    """``prepare`` and ``poison`` run on the CPU, and the trigger changes images.

    An attack on chosen test images may do without a trigger; then it attacks no others.
    """
    planted = carried_out(subject)
    images, labels, ids = samples()
    if Need.TEST_DATA in subject.info.needs:
        test = held_out_images()
        wanted = planted.attack.wanted_labels(planted.trigger, test.labels, test.ids, NUM_CLASSES)
        require(bool((wanted >= 0).any()), "it attacks none of the test images")
        if bool((wanted < 0).any()):
            return
    triggered = planted.trigger.apply(images, labels, ids)
    require(not torch.equal(triggered, images), "the trigger changes no image")


def triggered_images_are_images(subject: Subject) -> None:
    """float32 in [0, 1] and finite, of the shape they had."""
    images, labels, ids = samples()
    triggered = carried_out(subject).trigger.apply(images, labels, ids)
    require(triggered.dtype == torch.float32, f"images became {triggered.dtype}")
    require(triggered.shape == images.shape, f"images became {tuple(triggered.shape)}")
    require(bool(triggered.isfinite().all()), "images are not finite")
    low, high = float(triggered.min()), float(triggered.max())
    require(low >= 0 and high <= 1, f"pixels reach from {low:g} to {high:g}; clamp to [0, 1]")


def trigger_leaves_its_input_alone(subject: Subject) -> None:
    """The images, labels and ids it is given are not written to."""
    given = samples()
    before = [value.clone() for value in given]
    carried_out(subject).trigger.apply(*given)
    for name, value, old in zip(("images", "labels", "ids"), given, before, strict=True):
        require(torch.equal(value, old), f"it wrote into the {name}; work on a copy")


def trigger_is_the_same_every_time(subject: Subject) -> None:
    """Applied twice, it gives the same bits and draws from no global generator."""
    trigger = carried_out(subject).trigger
    first = trigger.apply(*samples())
    with watched_global_state() as changed:
        second = trigger.apply(*samples())
    require_untouched(changed)
    require(torch.equal(first, second), "two applications differ; draw what is random in prepare")


def trigger_does_not_depend_on_the_batch(subject: Subject) -> None:
    """One image at a time, in odd batches or in another order: the same images."""
    trigger = carried_out(subject).trigger
    images, labels, ids = samples()
    whole = trigger.apply(images, labels, ids)
    parts = [
        trigger.apply(images[i : i + 7], labels[i : i + 7], ids[i : i + 7])
        for i in range(0, len(images), 7)
    ]
    require_close(torch.cat(parts), whole, "in batches of seven")
    single = trigger.apply(images[:1], labels[:1], ids[:1])
    require_close(single, whole[:1], "one by one")
    backwards = trigger.apply(images.flip(0), labels.flip(0), ids.flip(0)).flip(0)
    require_close(backwards, whole, "in reverse order")


def trigger_is_restored_from_its_state(subject: Subject) -> None:
    """``restore(trigger.state())`` on a fresh object gives the same trigger."""
    trigger = carried_out(subject).trigger
    state = trigger.state()
    kept = {name: value.detach().clone() for name, value in state.items()}
    again = subject.create().restore(kept)
    require(
        torch.equal(again.apply(*samples()), trigger.apply(*samples())),
        "the restored trigger gives other images; state() lacks something",
    )


def same_seed_gives_the_same_poison(subject: Subject) -> None:
    """Trigger and poisoned set are the same bits, whatever was drawn before."""
    first = carried_out(subject)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        second = carried_out(subject, key="a second attack")
    state = second.trigger.state()
    for name, value in first.trigger.state().items():
        require(torch.equal(value, state[name]), f"state[{name!r}] differs between two runs")
    require(torch.equal(first.poisoned.kinds, second.poisoned.kinds), "other samples are poisoned")
    same = torch.equal(first.poisoned.data.images, second.poisoned.data.images)
    require(same, "the poisoned images differ between two runs")


def accepts_another_seed(subject: Subject) -> None:
    """It runs with another seed, too."""
    carried_out(subject, seed=1)


def poisoned_set_is_honest(subject: Subject) -> None:
    """Clean samples are as they were, covers keep their label, true labels are the true ones."""
    require_honest(carried_out(subject).poisoned, subject.config)


def poisons_as_many_as_it_says(subject: Subject) -> None:
    """``poison_rate`` of ``rate_basis`` are poisoned, from where the basis says."""
    if subject.config.controls_training:
        raise CheckSkippedError("it poisons while the victim trains")
    require_count(carried_out(subject).poisoned, subject.config)


def wanted_labels_are_labels(subject: Subject) -> None:
    """``wanted_labels`` gives a class of each test image, or -1 where it is not attacked."""
    planted, test = carried_out(subject), held_out_images()
    wanted = planted.attack.wanted_labels(planted.trigger, test.labels, test.ids, NUM_CLASSES)
    require(wanted.dtype == torch.int64, f"they are {wanted.dtype}, not int64")
    require(wanted.shape == test.labels.shape, f"{tuple(wanted.shape)} for {len(test)} images")
    in_range = bool(((wanted >= NOT_ATTACKED) & (wanted < NUM_CLASSES)).all())
    require(in_range, "there are labels of no class")
    require(bool((wanted != NOT_ATTACKED).any()), "no image is attacked")


def covers_are_made_like_triggered_images(subject: Subject) -> None:
    """What ``cover`` returns keeps what a trigger must: images, the same every time, any batch."""
    planted = carried_out(subject)
    cover = planted.attack.cover(planted.trigger)
    if cover is None:
        raise CheckSkippedError("it makes no covers of its own sort")
    own: bool = subject.config.own_covers
    require(own, "cover() makes covers, and the configuration does not say own_covers = True")
    images, labels, ids = samples()
    made = cover.apply(images.clone(), labels, ids)
    require(made.shape == images.shape, f"images became {tuple(made.shape)}")
    low, high = float(made.min()), float(made.max())
    require(low >= 0 and high <= 1, f"pixels reach from {low:g} to {high:g}; clamp to [0, 1]")
    again = cover.apply(images.clone(), labels, ids)
    require(torch.equal(made, again), "two applications differ; let noise follow from the ids")
    backwards = cover.apply(images.flip(0), labels.flip(0), ids.flip(0)).flip(0)
    require_close(backwards, made, "in reverse order")


def leaves_what_is_global_alone(subject: Subject) -> None:
    """No global generator is seeded or drawn from, and no switch of torch is changed."""
    require_untouched(carried_out(subject).changed)


def works_in_grey_or_says_why_not(subject: Subject) -> None:
    """On one-channel images it works or raises InputError; nothing else."""
    grey = tiny_images(64, image_shape=(1, *IMAGE_SHAPE[1:]))
    attack, context = subject.create(), context_for(subject, grey=True)
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
    wanted_labels_are_labels,
    covers_are_made_like_triggered_images,
    leaves_what_is_global_alone,
    works_in_grey_or_says_why_not,
    *_control.CHECKS,
)
