"""An interrupted training, continued, ends with the bits of an undisturbed one."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from backdoorkit.errors import ContractError
from backdoorkit.training import TrainingHooks


class Interrupt(Exception):
    """What a killed process looks like from inside."""


class Interrupted(TrainingHooks):
    def __init__(self, at: int) -> None:
        self.at = at

    def after_epoch(self, model, epoch, metrics):
        if epoch == self.at:
            raise Interrupt
        return False


def state(model: nn.Module) -> list[torch.Tensor]:
    return list(model.state_dict().values())


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.9},
        {"momentum": 0.0},
        {"momentum": 0.9, "nesterov": True, "schedule": "cosine"},
        {"optimizer": "adam", "learning_rate": 0.01},
        {"precision": "bfloat16"},
        {"crop_padding": 1, "horizontal_flip": True},
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("at", [1, 3])
def test_resumed_equals_undisturbed(options, at, model, train, slot):
    model.drop.p = 0.3
    interrupted = copy.deepcopy(model)
    fresh = copy.deepcopy(model)
    undisturbed = train(model, epochs=4, **options)
    with pytest.raises(Interrupt):
        train(interrupted, epochs=4, hooks=Interrupted(at), checkpoint=slot, **options)
    resumed = train(fresh, epochs=4, checkpoint=slot, **options)
    assert resumed == undisturbed
    assert all(torch.equal(a, b) for a, b in zip(state(model), state(fresh), strict=True))


def test_the_generators_also_end_where_they_would_have(model, data, train, slot):
    train(copy.deepcopy(model), epochs=2, checkpoint=slot)
    tensors, _ = slot.load()
    own = torch.Generator().manual_seed(0)
    assert not torch.equal(tensors["generator.shuffle"], own.get_state())
    assert tensors["generator.shuffle"].dtype == torch.uint8


def test_a_finished_training_is_not_run_again(model, train, slot):
    first = train(model, checkpoint=slot)
    other = copy.deepcopy(model)
    assert train(other, checkpoint=slot) == first
    assert all(torch.equal(a, b) for a, b in zip(state(model), state(other), strict=True))


def test_an_early_stop_is_remembered(model, train, slot):
    class Stops(TrainingHooks):
        def after_epoch(self, model, epoch, metrics):
            return True

    train(model, hooks=Stops(), epochs=4, checkpoint=slot)
    assert train(model, epochs=4, checkpoint=slot).epochs_run == 1


def test_facts_survive_json(model, train, slot):
    first = train(model, checkpoint=slot)
    tensors, facts = slot.load()
    slot.kept = tensors, json.loads(json.dumps(facts))
    assert train(model, checkpoint=slot) == first


class Counting(TrainingHooks):
    """Learns for as many steps as it has counted; forgets unless asked for its state."""

    def __init__(self) -> None:
        self.steps = torch.zeros(())

    def loss(self, logits, batch, epoch):
        return super().loss(logits, batch, epoch) / (1.0 + self.steps)

    def after_step(self, model):
        self.steps += 1

    def state(self):
        return {"steps": self.steps}

    def load_state(self, state):
        self.steps = state["steps"].clone()


class InterruptedCounting(Interrupted, Counting):
    def __init__(self) -> None:
        Interrupted.__init__(self, at=1)
        Counting.__init__(self)


def test_hooks_get_their_own_state_back(model, train, slot):
    fresh = copy.deepcopy(model)
    with pytest.raises(Interrupt):
        train(copy.deepcopy(model), hooks=InterruptedCounting(), epochs=3, checkpoint=slot)
    train(fresh, hooks=Counting(), epochs=3, checkpoint=slot)
    train(model, hooks=Counting(), epochs=3)
    assert all(torch.equal(a, b) for a, b in zip(state(model), state(fresh), strict=True))


def test_a_checkpoint_of_another_model_is_refused(model, train, slot):
    train(model, checkpoint=slot)
    other = copy.deepcopy(model)
    other.head = nn.Linear(4, 5)
    with pytest.raises(ContractError, match="another model"):
        train(other, checkpoint=slot)


def test_progress_starts_where_the_training_does(model, train, slot):
    class Shown:
        done = 0

        def start(self, label, total):
            self.total = total
            return 0

        def advance(self, task, amount=1):
            self.done += amount

        def finish(self, task):
            pass

    with pytest.raises(Interrupt):
        train(copy.deepcopy(model), hooks=Interrupted(1), epochs=3, checkpoint=slot)
    shown = Shown()
    train(model, epochs=3, checkpoint=slot, progress=shown)
    assert shown.done == shown.total == 15
