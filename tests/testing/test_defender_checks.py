"""Each check of defenses and detectors fails for a method made to break it."""

from __future__ import annotations

import copy
import functools
import random

import numpy as np
import pytest
import torch

from backdoorkit import Kind
from backdoorkit.api import Defense, DefenseResult, DetectionResult, Detector, StructureError
from backdoorkit.testing import CheckStatus, _defenders, tiny_context, tiny_images, tiny_victim


class Noisy(Defense):
    """Adds seeded noise: a well-behaved defense with weights that depend on the seed."""

    def run(self, task, context):
        generator = context.generator("noise")
        with torch.no_grad():
            for parameter in task.model.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
        return DefenseResult(model=task.model, details={"rounds": self.config.rounds})


class Unseeded(Noisy):
    calls = 0

    def run(self, task, context):
        type(self).calls += 1
        with torch.no_grad():
            next(task.model.parameters()).mul_(1 + 0.01 * self.calls)
        return DefenseResult(model=task.model)


class SeedsGlobally(Noisy):
    def run(self, task, context):
        torch.manual_seed(0)
        return super().run(task, context)


class DrawsFromNumpy(Noisy):
    def run(self, task, context):
        np.random.rand()
        return super().run(task, context)


class DrawsFromPython(Noisy):
    def run(self, task, context):
        random.random()
        return super().run(task, context)


class WritesIntoTheReserve(Noisy):
    def run(self, task, context):
        task.clean.images[0, 0, 0, 0] ^= 1
        return super().run(task, context)


class LeavesAHook(Noisy):
    def run(self, task, context):
        task.model.register_forward_hook(lambda module, inputs, output: output + 1)
        return super().run(task, context)


class PatchesForward(Noisy):
    def run(self, task, context):
        inner = task.model.forward
        task.model.forward = lambda images: inner(images).flip(1)
        return super().run(task, context)


class AnotherShape(Noisy):
    def run(self, task, context):
        return DefenseResult(model=torch.nn.Linear(2, 2))


class NotFinite(Noisy):
    def run(self, task, context):
        with torch.no_grad():
            next(task.model.parameters()).fill_(float("nan"))
        return DefenseResult(model=task.model)


class NotJson(Noisy):
    def run(self, task, context):
        return DefenseResult(model=task.model, details={"scores": torch.ones(2)})


class ReturnsTheModel(Noisy):
    def run(self, task, context):
        return task.model


class AsksForMore(Noisy):
    def run(self, task, context):
        return DefenseResult(model=task.model, details={"n": len(task.training_data)})


class OneSeedOnly(Noisy):
    def run(self, task, context):
        if context.seed:
            raise ValueError("no such seed")
        return super().run(task, context)


class RefusesWrongly(Noisy):
    def check(self, structure):
        raise KeyError("layer4")


DEFENSES = [
    (Unseeded, "same seed gives the same weights"),
    (SeedsGlobally, "leaves what is global alone"),
    (DrawsFromNumpy, "leaves what is global alone"),
    (DrawsFromPython, "leaves what is global alone"),
    (WritesIntoTheReserve, "leaves its inputs alone"),
    (LeavesAHook, "repaired model is its weights"),
    (PatchesForward, "repaired model is its weights"),
    (AnotherShape, "runs with what it declares"),
    (NotFinite, "runs with what it declares"),
    (NotJson, "runs with what it declares"),
    (ReturnsTheModel, "runs with what it declares"),
    (AsksForMore, "runs with what it declares"),
    (OneSeedOnly, "accepts another seed"),
    (RefusesWrongly, "accepts the tiny victim"),
]


@pytest.fixture(autouse=True)
def a_victim_to_spoil(monkeypatch):
    """Methods under check may write into what is shared."""
    copied = functools.cache(lambda: copy.deepcopy(tiny_victim()))
    monkeypatch.setattr(_defenders, "tiny_victim", copied)


def failed(outcomes):
    return [outcome.check for outcome in outcomes.values() if outcome.failed]


@pytest.mark.parametrize(("defense", "check"), DEFENSES)
def test_a_defense_that_breaks_the_contract_fails_its_check(defense, check, outcomes):
    assert failed(outcomes(Kind.DEFENSE, defense)) == [check]


def test_a_defense_that_keeps_the_contract_fails_none(outcomes):
    assert failed(outcomes(Kind.DEFENSE, Noisy)) == []


def test_one_fault_is_told_once(outcomes):
    found = outcomes(Kind.DEFENSE, AsksForMore)
    skipped = [o for o in found.values() if o.status is CheckStatus.SKIPPED]
    assert "repaired model works" in {o.check for o in skipped}


class Refuses(Noisy):
    def check(self, structure):
        raise StructureError("it has no attention layer")


def test_a_defense_may_refuse_the_tiny_victim(outcomes):
    found = outcomes(Kind.DEFENSE, Refuses)
    assert failed(found) == []
    assert "it has no attention layer" in found["runs with what it declares"].message


class Weigher(Detector):
    """A well-behaved detector."""

    def run(self, task, context):
        score = float(sum(p.detach().abs().sum() for p in task.model.parameters()))
        torch.rand(1)  # drawn from torch's seeded generator, as a dropout layer would
        return DetectionResult(score=score, threshold=1.0, target=2)


class NoScore(Weigher):
    def run(self, task, context):
        return DetectionResult(score=float("nan"))


class InfiniteThreshold(Weigher):
    def run(self, task, context):
        return DetectionResult(score=1.0, threshold=float("inf"))


class NoSuchClass(Weigher):
    def run(self, task, context):
        return DetectionResult(score=1.0, target=4)


class Fickle(Weigher):
    def run(self, task, context):
        return DetectionResult(score=random.Random().random())


@pytest.mark.parametrize(
    ("detector", "check"),
    [
        (NoScore, "runs with what it declares"),
        (InfiniteThreshold, "verdict is well formed"),
        (NoSuchClass, "verdict is well formed"),
        (Fickle, "same seed gives the same verdict"),
    ],
)
def test_a_detector_that_breaks_the_contract_fails_its_check(detector, check, outcomes):
    assert check in failed(outcomes(Kind.DETECTOR, detector))


def test_a_detector_that_keeps_the_contract_fails_none(outcomes):
    assert failed(outcomes(Kind.DETECTOR, Weigher)) == []


# -- the tiny victim -------------------------------------------------------------------------------


def test_the_tiny_victim_is_backdoored():
    victim, context = tiny_victim(), tiny_context("test")
    assert context.accuracy(victim.model, victim.test) >= 0.99
    counted = victim.triggered.labels != victim.target
    predicted = context.predict(victim.model, victim.triggered).argmax(1)
    assert float((predicted[counted] == victim.target).float().mean()) >= 0.99


def test_the_tiny_victim_is_the_same_every_time():
    first = tiny_victim().model.state_dict()
    tiny_victim.cache_clear()
    torch.manual_seed(77)
    second = tiny_victim().model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_reserve_and_the_test_images_are_not_trained_on():
    victim = tiny_victim()
    trained = {image.numpy().tobytes() for image in victim.poisoned.data.images}
    for data in (victim.reserve, victim.test):
        assert not any(image.numpy().tobytes() in trained for image in data.images)


def test_tiny_images_are_balanced():
    assert tiny_images(64).labels.bincount().tolist() == [16] * 4
