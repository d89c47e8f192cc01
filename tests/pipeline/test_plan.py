"""Recipes become steps: shared ones once, keys that follow content."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from backdoorkit.pipeline.origins import origin_of
from backdoorkit.pipeline.plan import Plan, StepKind, make_plan
from backdoorkit.pipeline.recipe import Recipe
from backdoorkit.pipeline.results import NO_DEFENSE

MakeRecipe = Callable[..., Recipe]


def plan(recipe: Recipe, fingerprint: str = "1") -> Plan:
    return make_plan(
        recipe,
        data_fingerprint=lambda _: fingerprint,
        file_fingerprint=lambda _: "weights",
    )


def count(plan: Plan, kind: StepKind) -> int:
    return len(plan.of_kind(kind))


def keys(plan: Plan, kind: StepKind) -> set[str]:
    return {step.key for step in plan.of_kind(kind)}


def test_two_defenses_share_one_victim(recipe: MakeRecipe) -> None:
    two = plan(recipe(defenses=[{"name": "toy-defense"}, {"name": "toy-defense", "behavior": "x"}]))
    assert count(two, StepKind.VICTIM) == 1
    assert count(two, StepKind.POISON) == 1
    assert count(two, StepKind.DEFEND) == 2
    assert count(two, StepKind.EVALUATE) == 3  # the victim once, each repaired model once


def test_every_attack_has_its_row_without_a_defense(recipe: MakeRecipe) -> None:
    grid = plan(recipe(attacks=[{"name": "toy-attack"}, {"name": "none"}], seeds=[0, 1]))
    rows = [(entry.attack, entry.defense, entry.seed) for entry in grid.entries]
    assert rows == [
        ("toy-attack", NO_DEFENSE, 0),
        ("toy-attack", NO_DEFENSE, 1),
        ("none", NO_DEFENSE, 0),
        ("none", NO_DEFENSE, 1),
    ]


def test_a_preset_of_the_attack_is_told_of_the_attack(recipe: MakeRecipe) -> None:
    attack = {"name": "toy-attack", "preset": "released"}
    grid = plan(recipe(attacks=[attack], defenses=[{"name": "toy-defense"}]))
    origins = [origin_of(entry) for entry in grid.entries]
    assert [part.preset for origin in origins for part in origin.attacks] == ["released"] * 2
    assert [origin.defense and origin.defense.preset for origin in origins] == [None, ""]


def test_the_clean_twin_has_no_poison_step(recipe: MakeRecipe) -> None:
    assert count(plan(recipe(attacks=[{"name": "none"}])), StepKind.POISON) == 0


def test_each_step_comes_after_what_it_starts_from(recipe: MakeRecipe) -> None:
    made: set[str] = set()
    for step in plan(recipe(defenses=[{"name": "toy-defense"}], seeds=[0, 1])).steps:
        assert {source.key for source in step.inputs.values()} <= made
        made.add(step.key)


def test_the_same_recipe_has_the_same_keys(recipe: MakeRecipe) -> None:
    assert [s.key for s in plan(recipe()).steps] == [s.key for s in plan(recipe()).steps]


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"epochs": 3, "batch_size": 32, "precision": "float32"}},
        {"attacks": [{"name": "toy-attack", "poison_rate": 0.2}]},
        {"data": {"name": "toy-data", "reserve_size": 31}},
        {"model": {"name": "toy-network", "normalization": "none"}},
        {"seeds": [7]},
    ],
)
def test_whatever_changes_the_victim_changes_its_key(
    recipe: MakeRecipe, changes: dict[str, object]
) -> None:
    assert keys(plan(recipe()), StepKind.VICTIM).isdisjoint(
        keys(plan(recipe(**changes)), StepKind.VICTIM)
    )


def test_other_images_change_every_key(recipe: MakeRecipe) -> None:
    before, after = plan(recipe(), "1"), plan(recipe(), "2")
    assert {s.key for s in before.steps}.isdisjoint(s.key for s in after.steps)


def test_adding_a_defense_keeps_all_other_keys(recipe: MakeRecipe) -> None:
    few = plan(recipe())
    more = plan(recipe(defenses=[{"name": "toy-defense"}]))
    assert {s.key for s in few.steps} < {s.key for s in more.steps}


def test_what_tells_equal_names_apart_is_in_the_label(recipe: MakeRecipe) -> None:
    two = plan(recipe(attacks=[{"name": "toy-attack"}, {"name": "toy-attack", "target": 2}]))
    assert [entry.attack for entry in two.entries] == [
        "toy-attack (target=0)",
        "toy-attack (target=2)",
    ]
