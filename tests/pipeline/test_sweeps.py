"""Sweeps: one table of a recipe becomes one row per combination of values."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from typing import Any

import pytest

from backdoorkit.errors import ConfigError
from backdoorkit.hooks.registry import Registry
from backdoorkit.pipeline.labels import labels
from backdoorkit.pipeline.plan import Plan, StepKind, make_plan
from backdoorkit.pipeline.recipe import Recipe

MakeRecipe = Callable[..., Recipe]


def plan(recipe: Recipe) -> Plan:
    return make_plan(recipe, data_fingerprint=lambda _: "1", file_fingerprint=lambda _: "2")


def faults(recipe: MakeRecipe, **changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        recipe(**changes)
    return [str(issue) for issue in caught.value.issues]


def test_every_combination_is_a_row_the_first_option_varying_slowest(recipe: MakeRecipe) -> None:
    sweep = {"poison_rate": [0.1, 0.2], "label_map": ["all-to-one", "all-to-all"]}
    made = recipe(attacks=[{"name": "toy-attack", "target": 1, "sweep": sweep}])
    found = [(a.config.poison_rate, a.config.label_map, a.config.target) for a in made.attacks]
    assert found == [
        (0.1, "all-to-one", 1),
        (0.1, "all-to-all", 1),
        (0.2, "all-to-one", 1),
        (0.2, "all-to-all", 1),
    ]
    assert [entry.attack for entry in plan(made).entries] == [
        "toy-attack (poison_rate=0.1, label_map=all-to-one)",
        "toy-attack (poison_rate=0.1, label_map=all-to-all)",
        "toy-attack (poison_rate=0.2, label_map=all-to-one)",
        "toy-attack (poison_rate=0.2, label_map=all-to-all)",
    ]


def test_values_that_are_lists_themselves_are_swept_whole(recipe: MakeRecipe) -> None:
    sweep = {"source_classes": [[1], [1, 2]]}
    table = {"name": "toy-attack", "label_map": "source-specific", "sweep": sweep}
    made = recipe(attacks=[table])
    assert [attack.config.source_classes for attack in made.attacks] == [(1,), (1, 2)]


def test_data_model_and_training_are_swept_too_and_their_rows_are_told_apart(
    recipe: MakeRecipe,
) -> None:
    made = recipe(
        data={"name": "toy-data", "sweep": {"reserve_size": [16, 32]}},
        model={"name": "toy-network", "sweep": {"normalization": ["data", "none"]}},
        train={"batch_size": 32, "sweep": {"epochs": [1, 2]}},
    )
    names = {(entry.data, entry.model) for entry in plan(made).entries}
    assert len(names) == 8
    assert (
        "toy-data (reserve_size=16)",
        "toy-network (normalization=none) (epochs=2)",
    ) in names


def test_an_option_that_one_row_leaves_out_is_none_in_its_label(recipe: MakeRecipe) -> None:
    rows = [{"name": "toy-data", "reserve_size": 16}, {"name": "toy-data"}]
    assert labels(recipe(data=rows).data) == [
        "toy-data (reserve_size=16)",
        "toy-data (reserve_size=none)",
    ]


def test_what_rows_of_a_sweep_share_is_one_step(recipe: MakeRecipe) -> None:
    made = plan(
        recipe(
            attacks=[{"name": "toy-attack", "sweep": {"poison_rate": [0.1, 0.2]}}],
            defenses=[{"name": "toy-defense", "sweep": {"behavior": ["keep", "x", "y"]}}],
            seeds=[0, 1],
        )
    )
    counts = {kind: len(made.of_kind(kind)) for kind in StepKind}
    assert counts[StepKind.DATA] == 2  # one per seed
    assert counts[StepKind.POISON] == counts[StepKind.VICTIM] == 4
    assert counts[StepKind.DEFEND] == 12
    assert counts[StepKind.EVALUATE] == 16  # every victim once


def test_a_value_that_is_added_changes_no_other_key(recipe: MakeRecipe) -> None:
    def keys(*rates: float) -> set[str]:
        attack = {"name": "toy-attack", "sweep": {"poison_rate": list(rates)}}
        return {step.key for step in plan(recipe(attacks=[attack])).steps}

    assert keys(0.1, 0.2) < keys(0.1, 0.2, 0.3)
    assert keys(0.1) == {
        step.key
        for step in plan(recipe(attacks=[{"name": "toy-attack", "poison_rate": 0.1}])).steps
    }


def test_the_resolved_recipe_has_the_rows_and_reads_back_equal(
    recipe: MakeRecipe, registry: Registry
) -> None:
    made = recipe(
        attacks=[{"name": "toy-attack", "sweep": {"poison_rate": [0.1, 0.2]}}],
        train={"sweep": {"epochs": [1, 2]}},
    )
    text = made.to_toml()
    assert "sweep" not in text
    assert text.count("[[attacks]]") == text.count("[[train]]") == 2
    assert Recipe.from_mapping(tomllib.loads(text), registry) == made


def test_faults_are_named_where_they_are_each_once(recipe: MakeRecipe) -> None:
    sweep = {
        "poison_rate": [0.1, 2],
        "label_map": ["all-to-one", "all-to-al"],
        "poison_rte": [1, 2],
    }
    table = {"name": "toy-attack", "target": -1, "sweep": sweep}
    assert faults(recipe, attacks=[table], train={"sweep": {"epochs": [-1, 1]}}) == [
        "train.sweep.epochs[0]: must be at least 0, not -1",
        "attacks[0].target: must be at least 0, not -1",
        "attacks[0].sweep.poison_rte: unknown key; did you mean 'poison_rate'?",
        "attacks[0].sweep.label_map[1]: must be one of 'all-to-one', 'all-to-all', "
        "'source-specific', not 'all-to-al'; did you mean 'all-to-all'?",
        "attacks[0].sweep.poison_rate[1]: must be at most 1, not 2.0",
    ]


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ({"sweep": {}}, "attacks[0].sweep: must be a table of options with lists of values"),
        ({"sweep": [1]}, "attacks[0].sweep: must be a table of options with lists of values"),
        ({"sweep": {"target": 1}}, "attacks[0].sweep.target: must be a list of values, not 1"),
        ({"sweep": {"target": []}}, "attacks[0].sweep.target: must be a list of values, not []"),
        (
            {"target": 1, "sweep": {"target": [1, 2]}},
            "attacks[0].sweep.target: is set as attacks[0].target, too; leave one out",
        ),
        (
            {"sweep": {"target": [1, 1]}},
            "attacks[0] with target=1: is the same as attacks[0] with target=1; leave one",
        ),
    ],
)
def test_sweeps_that_make_no_sense_are_refused(
    recipe: MakeRecipe, table: dict[str, Any], fault: str
) -> None:
    (found,) = faults(recipe, attacks=[{"name": "toy-attack", **table}])
    assert found.startswith(fault)


def test_a_row_that_a_sweep_makes_again_is_refused(recipe: MakeRecipe) -> None:
    rows = [
        {"name": "toy-attack", "target": 2},
        {"name": "toy-attack", "sweep": {"target": [1, 2]}},
    ]
    assert faults(recipe, attacks=rows) == [
        "attacks[1] with target=2: is the same as attacks[0]; leave one of them out"
    ]


def test_parts_of_a_composed_attack_are_not_swept(recipe: MakeRecipe) -> None:
    parts = [{"name": "toy-attack"}, {"name": "toy-attack", "sweep": {"target": [1, 2]}}]
    (fault,) = faults(recipe, attacks=[{"name": "composed", "parts": parts}])
    assert fault.startswith("attacks[0].parts: must be an array of at least two tables")
