"""Each check of attacks fails for an attack made to break it."""

from __future__ import annotations

import attrs
import pytest
import torch

from backdoorkit import Kind, Need
from backdoorkit.api import (
    Attack,
    AttackHooks,
    InputError,
    PoisonedSet,
    SampleKind,
    Trigger,
    poison_by_options,
)
from backdoorkit.testing import CheckStatus, tiny_images


class Corner(Trigger):
    """A pixel pattern drawn in ``prepare``."""

    def __init__(self, pattern):
        self.pattern = pattern

    def apply(self, images, labels, indices):
        triggered = images.clone()
        triggered[..., :2, :2] = self.pattern
        return triggered

    def state(self):
        return {"pattern": self.pattern}


class Good(Attack):
    """A well-behaved attack whose trigger depends on the seed."""

    trigger = Corner

    def prepare(self, data, context):
        return self.trigger(torch.rand(2, 2, generator=context.generator("pattern")))

    def restore(self, state):
        return self.trigger(state["pattern"])


def with_trigger(**methods):
    """The good attack with parts of its trigger replaced."""
    return type("Bad", (Good,), {"trigger": type("BadTrigger", (Corner,), methods)})


def apply(change):
    """A trigger whose images are changed once more."""

    def method(self, images, labels, indices):
        return change(Corner.apply(self, images, labels, indices))

    return {"apply": method}


def in_place(self, images, labels, indices):
    images[..., :2, :2] = self.pattern
    return images


def by_batch(self, images, labels, indices):
    return Corner.apply(self, images, labels, indices) * (1 - 0.1 / len(images))


def by_position(self, images, labels, indices):
    shade = torch.linspace(0.5, 1, len(images)).view(-1, 1, 1, 1)
    return Corner.apply(self, images, labels, indices) * shade


class DrawsWhenApplied(Corner):
    def apply(self, images, labels, indices):
        return (Corner.apply(self, images, labels, indices) * torch.rand(1)).clamp(0, 1)


class Forgetful(Good):
    def restore(self, state):
        return Corner(torch.zeros(2, 2))


class Unseeded(Good):
    made = 0

    def prepare(self, data, context):
        type(self).made += 1
        return Corner(torch.full((2, 2), 1 / self.made))


class OneSeed(Good):
    def prepare(self, data, context):
        if context.seed:
            raise ValueError("no such seed")
        return super().prepare(data, context)


class NoGrey(Good):
    def prepare(self, data, context):
        if data.shape[0] != 3:
            raise IndexError("channel 1")
        return super().prepare(data, context)


class Repoison(Good):
    """Lets a subclass tamper with an honest poisoned set."""

    def tamper(self, honest, clean):
        raise NotImplementedError

    def poison(self, data, trigger, context):
        honest = poison_by_options(data, trigger, self.config, context.generator("positions"))
        return self.tamper(honest, data)


class Silent(Repoison):
    def tamper(self, honest, clean):
        return attrs.evolve(honest, kinds=torch.zeros_like(honest.kinds))


class Relabels(Repoison):
    def tamper(self, honest, clean):
        return attrs.evolve(honest, true_labels=honest.data.labels)


class Few(Repoison):
    def tamper(self, honest, clean):
        return PoisonedSet(data=clean, true_labels=clean.labels, kinds=honest.kinds * 0)


class CoversRelabelled(Repoison):
    def tamper(self, honest, clean):
        kinds = honest.kinds.clone()
        positions = honest.poisoned_positions
        moved = positions[clean.labels[positions] != 0][:1]
        kinds[moved] = int(SampleKind.COVER)
        return attrs.evolve(honest, kinds=kinds)


class Broken(Good):
    def control(self, trigger, data, context):
        class Hooks(AttackHooks):
            def after_epoch(self, model, epoch, metrics):
                raise RuntimeError("queue is empty")

        return Hooks(trigger)


class Uncontrolled(Good):
    def control(self, trigger, data, context):
        return AttackHooks(trigger)


FAULTY = [
    (with_trigger(apply=lambda s, images, labels, ids: images.clone()), "plants a trigger"),
    (with_trigger(apply=in_place), "trigger leaves its input alone"),
    (type("Draws", (Good,), {"trigger": DrawsWhenApplied}), "trigger is the same every time"),
    (with_trigger(apply=by_batch), "trigger does not depend on the batch"),
    (with_trigger(apply=by_position), "trigger does not depend on the batch"),
    (Forgetful, "trigger is restored from its state"),
    (with_trigger(state=lambda self: {"size": 2}), "plants a trigger"),
    (Unseeded, "same seed gives the same poison"),
    (OneSeed, "accepts another seed"),
    (NoGrey, "works in grey or says why not"),
    (Silent, "poisoned set is honest"),
    (Relabels, "poisoned set is honest"),
    (CoversRelabelled, "poisoned set is honest"),
    (Few, "poisons as many as it says"),
    (Uncontrolled, "control of the training runs"),
]


def failed(outcomes):
    return [outcome.check for outcome in outcomes.values() if outcome.failed]


@pytest.mark.parametrize(("attack", "check"), FAULTY)
def test_an_attack_that_breaks_the_contract_fails_its_check(attack, check, outcomes):
    assert check in failed(outcomes(Kind.ATTACK, attack))


NO_IMAGES = {
    "out of range": lambda images: images * 2 - 0.5,
    "another type": torch.Tensor.double,
    "another shape": lambda images: images[:, :1],
    "not finite": lambda images: images * float("nan"),
}


@pytest.mark.parametrize("change", NO_IMAGES)
def test_a_trigger_that_makes_no_images_fails(change, outcomes):
    found = failed(outcomes(Kind.ATTACK, with_trigger(**apply(NO_IMAGES[change]))))
    # Some of it is found when the training set is poisoned already.
    assert {"plants a trigger", "triggered images are images"} & set(found)


@pytest.mark.parametrize("basis", ["all", "all-within-target", "target-class", "non-target"])
def test_an_attack_that_keeps_the_contract_fails_none(basis, outcomes):
    assert failed(outcomes(Kind.ATTACK, Good, {"rate_basis": basis})) == []


class ColourOnly(Good):
    def prepare(self, data, context):
        if data.shape[0] != 3:
            raise InputError("expected colour images; choose another attack")
        return super().prepare(data, context)


def test_an_attack_may_refuse_grey_images(outcomes):
    assert failed(outcomes(Kind.ATTACK, ColourOnly)) == []


PER_BATCH = {"index_policy": "per-batch"}


def test_attacks_that_control_training_may_poison_later(outcomes):
    found = outcomes(Kind.ATTACK, Few, PER_BATCH, needs={Need.TRAINING_CONTROL})
    assert found["poisons as many as it says"].status is CheckStatus.SKIPPED


def test_any_attack_may_poison_batch_by_batch(outcomes):
    found = outcomes(Kind.ATTACK, Good, PER_BATCH)
    assert failed(found) == []
    assert found["control of the training runs"].status is CheckStatus.PASSED


def test_hooks_that_fail_fail_their_check(outcomes):
    assert "control of the training runs" in failed(outcomes(Kind.ATTACK, Broken, PER_BATCH))


def test_the_checks_images_are_never_written_to(outcomes):
    before = tiny_images(16).images
    outcomes(Kind.ATTACK, with_trigger(apply=in_place))
    assert torch.equal(tiny_images(16).images, before)


class Nothing(Corner):
    def apply(self, images, labels, indices):
        return images.clone()


class Chosen(Good):
    """Attacks one test image, which stays as it is."""

    trigger = Nothing
    attacked = (3,)

    def prepare(self, data, context):
        assert len(context.test_data) > 0
        return super().prepare(data, context)

    def wanted_labels(self, trigger, labels, ids, num_classes):
        chosen = torch.isin(ids, torch.tensor(self.attacked, dtype=torch.int64))
        return torch.where(chosen, self.config.target, -1)


def test_chosen_test_images_may_be_attacked_without_a_trigger(outcomes):
    assert failed(outcomes(Kind.ATTACK, Chosen, needs={Need.TEST_DATA})) == []


def test_an_attack_on_chosen_images_must_choose_some(outcomes):
    class Nobody(Chosen):
        attacked = ()

    assert failed(outcomes(Kind.ATTACK, Nobody, needs={Need.TEST_DATA})) == ["plants a trigger"]
