"""Scales: what a recipe changes about itself to be carried out smaller."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from backdoorkit.errors import ConfigError, InputError
from backdoorkit.pipeline.recipe import read_recipe_file
from backdoorkit.pipeline.scales import at_scale, scales_of

RECIPE = """
name = "table"
seeds = [0, 1]

[data]
name = "digits"
size = 16

[model]
name = "large"
width = 64

[train]
epochs = 100

[[attacks]]
name = "patch"
target = 1

[[attacks]]
name = "patch"
target = 2

[[attacks]]
name = "blend"
sweep = { rate = [0.1, 0.2, 0.3] }

[[attacks]]
name = "none"

[[defenses]]
name = "prune"

[[detectors]]
name = "look"
"""


def scaled(changes: str) -> dict[str, Any]:
    return at_scale(tomllib.loads(f"{RECIPE}\n{changes}"), "small")


def faults(changes: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        scaled(changes)
    return [str(issue) for issue in caught.value.issues]


def test_without_a_scale_the_recipe_is_what_it_is() -> None:
    plain = tomllib.loads(RECIPE)
    values = tomllib.loads(f"{RECIPE}\n[scale.small]\nseeds = [0]")
    assert at_scale(values, None) == at_scale(values, "full") == plain
    assert at_scale(plain, None) == plain


def test_the_name_tells_the_scale() -> None:
    assert scaled("[scale.small]\nseeds = [0]")["name"] == "table-small"


def test_values_are_replaced_and_tables_changed_key_by_key() -> None:
    made = scaled("[scale.small]\nseeds = [3]\ntrain.epochs = 2\ntrain.batch_size = 8\nthreads = 1")
    assert (made["seeds"], made["threads"]) == ([3], 1)
    assert made["train"] == {"epochs": 2, "batch_size": 8}
    assert made["data"] == {"name": "digits", "size": 16}


def test_a_table_that_names_another_method_replaces_it() -> None:
    made = scaled('[scale.small]\nmodel = { name = "tiny" }\ndata = { name = "digits", size = 8 }')
    assert made["model"] == {"name": "tiny"}
    assert made["data"] == {"name": "digits", "size": 8}


def test_rows_are_changed_by_their_name() -> None:
    made = scaled(
        "[scale.small.attacks.patch]\nsize = 3\n"
        "[scale.small.attacks.blend]\nsweep.rate = [0.1]\nalpha = 0.5"
    )
    assert made["attacks"] == [
        {"name": "patch", "target": 1, "size": 3},
        {"name": "patch", "target": 2, "size": 3},
        {"name": "blend", "sweep": {"rate": [0.1]}, "alpha": 0.5},
        {"name": "none"},
    ]


def test_rows_are_chosen_by_their_names_in_the_recipes_order() -> None:
    made = scaled('[scale.small]\nattacks = ["none", "patch"]\ndetectors = []')
    assert [row["name"] for row in made["attacks"]] == ["patch", "patch", "none"]
    assert "detectors" not in made


def test_rows_are_chosen_and_changed_at_once() -> None:
    made = scaled('[scale.small.attacks]\nonly = ["blend"]\nblend.alpha = 0.5')
    (row,) = made["attacks"]
    assert (row["name"], row["alpha"]) == ("blend", 0.5)


def test_rows_are_replaced_by_other_rows() -> None:
    made = scaled('[[scale.small.defenses]]\nname = "tune"\n[[scale.small.metrics]]\nname = "m"')
    assert made["defenses"] == [{"name": "tune"}]
    assert made["metrics"] == [{"name": "m"}]


def test_all_faults_of_a_scale_are_told_at_once_with_their_paths() -> None:
    assert faults(
        '[scale.small]\nname = "other"\nattacks = ["pach", 3]\n'
        'defenses = "prune"\n[scale.small.detectors]\nlok.size = 3\nlook = 1'
    ) == [
        "scale.small.name: is the same at every scale; leave it out",
        "scale.small.attacks[0]: the recipe has no table called 'pach'; did you mean 'patch'?",
        "scale.small.attacks[1]: the recipe has no table called 3; there are patch, blend, none",
        "scale.small.defenses: must be names, or tables by name ([scale.small.defenses.NAME]), "
        "not 'prune'",
        "scale.small.detectors.lok: the recipe has no table called 'lok'; did you mean 'look'?",
        "scale.small.detectors.look: must be a table, not 1",
    ]
    assert faults("[scale.small]\nanalyses.look.size = 3") == [
        "scale.small.analyses.look: the recipe has no table called 'look'; there are none"
    ]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ("[scale.full]\nseeds = [0]", "scale.full: is the recipe itself; write it there"),
        ("[scale]\nsmall = 3", "scale: must hold one table per scale, such as [scale.cpu]"),
    ],
)
def test_scales_that_are_none_are_refused(changes: str, fault: str) -> None:
    assert faults(changes) == [fault]


def test_a_scale_that_is_not_there_is_answered_with_those_that_are() -> None:
    values = tomllib.loads(f"{RECIPE}\n[scale.small]\n[scale.tiny]")
    assert scales_of(values) == ("full", "small", "tiny")
    with pytest.raises(InputError, match=r"no scale 'smal'; it has full, small, tiny$"):
        at_scale(values, "smal")
    with pytest.raises(InputError, match=r"no scale 'cpu'; it has full$"):
        at_scale(tomllib.loads(RECIPE), "cpu")


def test_a_file_is_read_at_a_scale(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text("seeds = [0]\n[scale.small]\nseeds = [1]\n")
    assert read_recipe_file(file) == {"seeds": [0], "name": "my"}
    assert read_recipe_file(file, "small") == {"seeds": [1], "name": "my-small"}
