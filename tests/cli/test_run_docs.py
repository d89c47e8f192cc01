"""The documentation of the command line and of recipes says what is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import attrs
import click
import pytest

from backdoorkit import TrainOptions
from backdoorkit.cli import cli
from backdoorkit.cli.calibrate import calibrate
from backdoorkit.cli.repair import repair
from backdoorkit.cli.report import report
from backdoorkit.cli.run import run
from backdoorkit.cli.scan import scan
from backdoorkit.data.options import DataOptions
from backdoorkit.pipeline.recipe import Recipe, RunOptions
from backdoorkit.pipeline.scales import at_scale, scales_of

USERS = Path(__file__).parents[2] / "docs" / "users"
COMMAND_LINE = (USERS / "command-line.md").read_text(encoding="utf-8")
RECIPES = (USERS / "recipes.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "command", [cli, run, report, scan, repair, calibrate], ids=lambda c: c.name
)
def test_every_option_is_documented(command):
    for param in command.get_params(click.Context(command)):
        for name in param.opts if isinstance(param, click.Option) else ():
            assert f"`{name}" in COMMAND_LINE, name


def test_every_command_is_documented():
    for name in cli.list_commands(click.Context(cli)):
        assert f"## `backdoorkit {name}`" in COMMAND_LINE


def test_every_key_of_a_recipe_is_documented():
    classes = (RunOptions, DataOptions, TrainOptions)
    keys = {key for cls in classes for key in attrs.fields_dict(cls)} | {"weights", "normalization"}
    for key in keys:
        assert f"`{key}`" in RECIPES, key


def test_examples_are_recipes():
    known = set(attrs.fields_dict(Recipe)) - {"models"} | {"model"}
    blocks = re.findall(r"```toml\n(.*?)```", RECIPES, re.DOTALL)
    assert blocks
    for block in map(tomllib.loads, blocks):
        for scale in scales_of(block):
            assert set(at_scale(block, scale)) <= known
