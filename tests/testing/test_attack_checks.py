"""Each check of attacks fails for an attack made to break it."""

from __future__ import annotations

import attrs
import pytest
import torch

from backdoorkit import Kind, Need, PoisonOptions, option
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


class Stray(Good):
    def wanted_labels(self, trigger, labels, ids, num_classes):
        return labels + num_classes


class NobodyAttacked(Good):
    def wanted_labels(self, trigger, labels, ids, num_classes):
        return torch.full_like(labels, -1)


class UndeclaredCovers(Good):
    def cover(self, trigger, epoch=None):
        return trigger


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
    (Stray, "wanted labels are labels"),
    (NobodyAttacked, "wanted labels are labels"),
    (UndeclaredCovers, "covers are made like triggered images"),
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


@attrs.frozen(kw_only=True)
class CoverConfig(PoisonOptions):
    own_covers = True
    rounds: int = option(1, help="How often.")


class DrawnCovers(Good):
    """Covers with noise from the global generator."""

    def cover(self, trigger, epoch=None):
        return DrawsWhenApplied(trigger.pattern)


def test_covers_must_follow_from_their_ids(outcomes):
    found = outcomes(Kind.ATTACK, DrawnCovers, {"cover_ratio": 1.0}, config=CoverConfig)
    assert failed(found) == ["covers are made like triggered images"]


class Counting(AttackHooks):
    """Brightens the trigger from epoch to epoch, and forgets how often when it is killed."""

    count = 0

    def after_epoch(self, model, epoch, metrics):
        self.count += 1
        self.trigger = Corner(torch.full((2, 2), self.count / 8))
        return False


class Forgetting(Good):
    def control(self, trigger, data, context):
        return Counting(trigger)


class Remembering(Good):
    def control(self, trigger, data, context):
        class Hooks(Counting):
            def state(self):
                return {"count": torch.tensor(self.count)}

            def load_state(self, state):
                self.count = int(state["count"])

        return Hooks(trigger)


def test_hooks_that_forget_end_with_another_trigger_when_they_are_resumed(outcomes):
    check = "interrupted control ends with the same bits"
    assert failed(outcomes(Kind.ATTACK, Forgetting, PER_BATCH)) == [check]
    found = outcomes(Kind.ATTACK, Remembering, PER_BATCH)
    assert found[check].status is CheckStatus.PASSED


class FreezesNothing(Good):
    def freeze(self, data, trigger, context, rate=None):
        nothing = torch.zeros(len(data), dtype=torch.uint8)
        return PoisonedSet(data=data, true_labels=data.labels, kinds=nothing)


def test_a_frozen_set_must_be_poisoned(outcomes):
    found = failed(outcomes(Kind.ATTACK, FreezesNothing, PER_BATCH))
    assert found == ["freezes a set that is honest"]


SPECIFIC = {"label_map": "source-specific", "source_classes": [1, 2]}


@pytest.mark.parametrize(
    "options",
    [
        {"rate_basis": "append"},
        {**SPECIFIC, "cover_ratio": 1.0},
        {**SPECIFIC, "rate_basis": "source-classes"},
        {**SPECIFIC, **PER_BATCH, "cover_ratio": 0.5},
    ],
)
def test_every_label_map_basis_and_policy_keeps_the_contract(options, outcomes):
    assert failed(outcomes(Kind.ATTACK, Good, options)) == []


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

    found = failed(outcomes(Kind.ATTACK, Nobody, needs={Need.TEST_DATA}))
    assert found == ["plants a trigger", "wanted labels are labels"]
