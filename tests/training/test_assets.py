"""Assets of attacks: made once, found again, counted apart."""

from __future__ import annotations

import json

import attrs
import pytest
import torch

from backdoorkit.assets import ForgetfulShelf
from backdoorkit.context import Context
from backdoorkit.errors import NeedNotDeclaredError


class Shelf(ForgetfulShelf):
    """Keeps assets in memory, by name and facts."""

    def __init__(self):
        self.kept = {}

    def load(self, name, facts):
        found = self.kept.get((name, json.dumps(facts, sort_keys=True)))
        return found and (found[0], attrs.evolve(found[1], reused=True))

    def save(self, tensors, record):
        self.kept[record.name, json.dumps(record.facts, sort_keys=True)] = (tensors, record)


def context(shelf=None, **more):
    return Context(method="mine", seed=0, device=torch.device("cpu"), shelf=shelf, **more)


def test_an_asset_is_made_once_for_equal_facts():
    shelf, made = Shelf(), []

    def make():
        made.append(1)
        return {"pattern": torch.full((2,), float(len(made)))}

    first = context(shelf).asset("pattern", {"size": 2}, make)
    again = context(shelf)
    assert torch.equal(again.asset("pattern", {"size": 2}, make)["pattern"], first["pattern"])
    assert len(made) == 1
    assert again.assets[0].reused
    again.asset("pattern", {"size": 3}, make)
    assert len(made) == 2


def test_without_a_shelf_it_is_simply_made():
    assert context().asset("x", {}, lambda: {"x": torch.ones(1)})["x"] == 1


def test_what_an_asset_draws_depends_on_nothing_before_it_and_changes_nothing_after():
    drawn = []
    for before in (0, 5):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(before)
            state = torch.get_rng_state()
            drawn.append(context().asset("noise", {}, lambda: {"x": torch.rand(4)})["x"])
            assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*drawn)


def test_what_it_costs_is_counted_apart_from_the_step():
    spender = context()
    spender.count(10, 1)

    def make():
        spender.count(300, 7)
        return {"x": torch.ones(1)}

    spender.asset("x", {"a": 1}, make)
    assert (spender.samples_seen, spender.gradient_steps) == (10, 1)
    (record,) = spender.assets
    assert (record.name, record.samples_seen, record.gradient_steps) == ("x", 300, 7)
    assert record.facts == {"a": 1}
    assert not record.reused


def test_an_asset_inside_an_asset_is_counted_once():
    spender = context()

    def inner():
        spender.count(100, 1)
        return {"x": torch.ones(1)}

    def outer():
        spender.count(20, 2)
        return spender.asset("inner", {}, inner)

    spender.asset("outer", {}, outer)
    costs = {record.name: record.samples_seen for record in spender.assets}
    assert costs == {"inner": 100, "outer": 20}


def test_trainings_outside_are_numbered_as_if_there_were_no_asset(monkeypatch):
    purposes = []
    monkeypatch.setattr(
        "backdoorkit.training.fit",
        lambda *_, shuffle_generator, **__: (
            purposes.append(shuffle_generator.initial_seed()) or _NOTHING
        ),
    )
    with_asset, without = context(), context()

    def make():
        with_asset.fit(None, None, None)
        return {}

    with_asset.asset("surrogate", {}, make)
    with_asset.fit(None, None, None)
    without.fit(None, None, None)
    inside, after, plain = purposes
    assert after == plain
    assert inside != plain


class _NOTHING:
    samples_seen = gradient_steps = 0


def test_test_images_are_for_those_who_declare_them():
    with pytest.raises(NeedNotDeclaredError, match=r"Need\.TEST_DATA"):
        _ = context().test_data
    assert context(test_data=lambda: "images").test_data == "images"
