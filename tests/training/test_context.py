"""What a method is given: seeds, cost, progress, and the oracle behind its lock."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from backdoorkit import TrainOptions
from backdoorkit.context import Context
from backdoorkit.errors import ContractError, OracleNotPermittedError

CPU = torch.device("cpu")


def context(**changes):
    return Context(**{"method": "tsbd", "seed": 0, "device": CPU} | changes)


def draws(generator):
    return torch.rand(4, generator=generator).tolist()


def test_the_same_purpose_gives_the_same_numbers_whatever_else_was_drawn():
    one, other = context(), context()
    draws(other.generator("something else"))
    assert draws(one.generator("mask")) == draws(other.generator("mask"))


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"method": "anp"}, {"method": "tsb", "purpose": "dmask"}]
)
def test_seed_method_and_purpose_each_change_the_numbers(changed):
    purpose = changed.pop("purpose", "mask")
    assert draws(context(**changed).generator(purpose)) != draws(context().generator("mask"))


def test_seeds_are_the_same_on_every_machine():
    # The first 63 bits of what `printf "0\x1ftsbd\x1fmask" | sha256sum` prints.
    assert context().generator("mask").initial_seed() == 6945795884069618443


def test_fit_and_own_loops_add_up_to_the_cost(model, data):
    surroundings = context()
    options = TrainOptions(epochs=2, batch_size=8)
    surroundings.fit(model, data, options)
    surroundings.fit(model, data, options)
    surroundings.count(100, 3)
    assert (surroundings.samples_seen, surroundings.gradient_steps) == (4 * 37 + 100, 23)


def test_fits_are_repeatable_and_differ_from_each_other(model, data):
    options = TrainOptions(epochs=1, batch_size=8)
    first, again, second = (copy.deepcopy(model) for _ in range(3))
    surroundings = context()
    surroundings.fit(first, data, options)
    surroundings.fit(second, data, options)
    context().fit(again, data, options)
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, second.head.weight)


def test_notes_are_kept_by_name():
    surroundings = context()
    surroundings.note(accuracy=0.5, rounds=3)
    surroundings.note(accuracy=0.75)
    assert surroundings.notes == {"accuracy": 0.75, "rounds": 3}


@pytest.mark.parametrize("value", [torch.tensor(1.0), float("nan"), {1, 2}])
def test_a_note_that_no_file_can_hold_is_refused(value):
    with pytest.raises(ContractError, match="tsbd to note JSON-ready facts"):
        context().note(accuracy=value)


def test_predict_and_accuracy_agree(model, data):
    surroundings = context()
    predicted = surroundings.predict(model, data).argmax(dim=1)
    share = float((predicted == data.labels).float().mean())
    assert surroundings.accuracy(model, data) == share


def test_autocast_is_the_runs_precision():
    with context(precision="bfloat16").autocast():
        assert torch.is_autocast_enabled("cpu")
        with context(precision="float32").autocast():
            assert not torch.is_autocast_enabled("cpu")


class Shown:
    def __init__(self) -> None:
        self.calls = []

    def start(self, label, total):
        self.calls.append((label, total))
        return 3

    def advance(self, task, amount=1):
        self.calls.append((task, amount))

    def finish(self, task):
        self.calls.append((task, "finished"))


def test_track_shows_how_far_it_is():
    shown = Shown()
    assert list(context(progress=shown).track("ab", "steps")) == ["a", "b"]
    assert shown.calls == [("tsbd: steps", 2), (3, 1), (3, 1), (3, "finished")]


def test_track_finishes_when_the_loop_is_left():
    shown = Shown()
    for _ in context(progress=shown).track(iter([1, 2, 3]), "steps"):
        break
    assert shown.calls == [("tsbd: steps", None), (3, "finished")]


def test_training_is_shown_under_the_methods_name(model, data):
    shown = Shown()
    context(progress=shown).fit(model, data, TrainOptions(epochs=1, batch_size=37))
    assert shown.calls[0] == ("tsbd: training", 1)


def test_the_oracle_is_locked(model):
    surroundings = context()
    assert not surroundings.oracle_permitted
    with pytest.raises(OracleNotPermittedError, match=r"--oracle .*oracle = true"):
        surroundings.oracle(model)
    assert not surroundings.oracle_used


def test_a_permitted_oracle_answers_and_is_recorded(model):
    surroundings = context(oracle=lambda asked: 0.25 if asked is model else 1.0)
    assert not surroundings.oracle_used
    assert surroundings.oracle(model) == 0.25
    assert surroundings.oracle_used


def test_structure_needs_to_know_the_images(model):
    with pytest.raises(ContractError, match="image shape"):
        context().structure(model)


def test_structure_is_found_for_the_runs_images():
    found = context(image_shape=(1, 4, 4), num_classes=2).structure(
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    )
    assert (found.head, found.feature_dim) == ("3", 12)
