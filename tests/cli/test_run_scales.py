"""``backdoorkit run --scale`` and sweeps, from a file to a table."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from backdoorkit.cli import cli

pytest.importorskip("backdoorkit_badnets")
pytest.importorskip("backdoorkit_ft")
pytest.importorskip("backdoorkit_metrics")

RECIPE = """
seeds = [0, 1]
device = "cpu"
threads = 1

[data]
name = "digits"
reserve_size = 60

[model]
name = "small-cnn"

[train]
epochs = 20

[[attacks]]
name = "badnets"
sweep = { poison_rate = [0.05, 0.1] }

[[attacks]]
name = "none"

[[defenses]]
name = "ft"

[scale.smoke]
seeds = [3]
data = { train_size = 100, test_size = 50 }
model.width = 4
train.epochs = 1
attacks = ["badnets"]
defenses.ft.epochs = 1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "study.toml"
    file.write_text(RECIPE)
    return file


def call(*args: str) -> Result:
    return CliRunner().invoke(cli, ["-q", "run", *args])


def test_the_command_line_comes_over_the_scale_and_that_over_the_recipe(file: Path) -> None:
    arguments = ("--set", "train.epochs=2", "--set", "attacks[0].sweep.poison_rate=[0.2]")
    result = call("-f", str(file), "--scale", "smoke", "--dry-run", *arguments)
    values = tomllib.loads(result.stdout)
    assert (values["name"], values["seeds"]) == ("study-smoke", [3])
    assert values["train"]["epochs"] == 2
    assert (values["data"]["train_size"], values["data"]["reserve_size"]) == (100, 60)
    assert [row["poison_rate"] for row in values["attacks"]] == [0.2]


def test_a_swept_recipe_prints_its_rows_and_is_the_same_when_read_again(file: Path) -> None:
    printed = call("-f", str(file), "--dry-run").stdout
    again = file.with_name("again.toml")
    again.write_text(printed)
    assert printed.count("[[attacks]]") == 3
    assert call("-f", str(again), "--dry-run").stdout == printed


def test_a_scale_that_is_not_there_is_answered_in_one_line(file: Path) -> None:
    result = call("-f", str(file), "--scale", "smke")
    assert result.exit_code == 2
    assert result.stderr == "Error: the recipe has no scale 'smke'; it has full, smoke\n"
    result = call("--scale", "smoke", "badnets")
    assert result.exit_code == 2
    assert result.stderr == "Error: --scale is for a recipe file; give one with -f\n"


def test_a_scale_is_carried_out_and_named_in_the_record(file: Path, tmp_path: Path) -> None:
    result = call("-f", str(file), "--scale", "smoke", "--json", "--store", str(tmp_path / "s"))
    assert result.exit_code == 0, result.output
    table = json.loads(result.stdout)
    assert table["name"] == "study-smoke"
    assert [(row["attack"], row["defense"]) for row in table["rows"]] == [
        ("badnets (poison_rate=0.05)", "no defense"),
        ("badnets (poison_rate=0.05)", "ft"),
        ("badnets (poison_rate=0.1)", "no defense"),
        ("badnets (poison_rate=0.1)", "ft"),
    ]
    directory = Path(table["directory"])
    assert directory.name.startswith("study-smoke-")
    assert tomllib.loads((directory / "recipe.toml").read_text())["train"]["epochs"] == 1


def test_a_plan_counts_steps_and_those_that_are_done(file: Path, tmp_path: Path) -> None:
    arguments = ("-f", str(file), "--scale", "smoke", "--store", str(tmp_path / "s"))
    lines = [line.split() for line in call(*arguments, "--plan").stdout.splitlines()]
    assert lines == [
        ["steps", "all", "done"],
        ["data", "1", "0"],
        ["poison", "2", "0"],
        ["victim", "2", "0"],
        ["predictions", "4", "0"],
        ["repaired", "2", "0"],
        ["metrics", "4", "0"],
        ["together", "15", "0"],
    ]
    assert not (tmp_path / "s").exists()
    assert call(*arguments).exit_code == 0
    assert call(*arguments, "--plan").stdout.split()[-3:] == ["together", "15", "15"]
    more = call(*arguments, "--plan", "--set", "attacks[0].sweep.poison_rate=[0.05, 0.1, 0.2]")
    assert more.stdout.split()[-3:] == ["together", "22", "15"]
