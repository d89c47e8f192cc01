"""Light methods, and the command `run` called with them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

import attrs
import pytest
from click.testing import CliRunner

from backdoorkit import PoisonOptions, option
from backdoorkit.cli import cli
from backdoorkit.hooks.registry import Registry
from backdoorkit.pipeline import catalog
from backdoorkit.pipeline.recipe import STANDARD_METRICS
from backdoorkit.testing import light_method, light_plugin


@attrs.frozen(kw_only=True)
class ImageOptions:
    size: int = option(8, ge=1, help="Side.")


@attrs.frozen(kw_only=True)
class NetworkOptions:
    width: int = option(16, ge=1, help="Width.")


@attrs.frozen(kw_only=True)
class PatchOptions(PoisonOptions):
    picture: Path | None = option(None, help="Picture.")


@attrs.frozen(kw_only=True)
class PruningOptions:
    ratio: float = option(0.5, ge=0, le=1, help="Share.", symbol="r")
    levels: tuple[float, ...] = option((0.1, 0.2), gt=0, help="Levels.")
    rule: Literal["l1", "l2"] = option("l1", help="Rule.")
    classes: Literal[10, 100] = option(10, help="Classes.")
    bias: bool = option(True, help="Bias.")
    note: str = option("", help="Note.")


@attrs.frozen(kw_only=True)
class Required:
    level: int = option(help="Level.")


def light_methods():
    paper = {"poison_rate": 0.3, "target": 2}
    return light_plugin(
        datasets=[light_method("digits", ImageOptions), light_method("letters", ImageOptions)],
        models=[light_method("small-cnn", NetworkOptions), light_method("deep")],
        attacks=[
            light_method("patch", PatchOptions, presets={"paper": paper}),
            light_method("twice", PoisonOptions),
        ],
        defenses=[
            light_method("prune", PruningOptions),
            light_method("strict", Required),
            light_method("twice"),
        ],
        detectors=[light_method("scan")],
        analyses=[light_method("look")],
        metrics=[light_method(name) for name in STANDARD_METRICS],
    )


@pytest.fixture
def registry():
    made = Registry()
    made.register(catalog)
    made.register(light_methods(), name="light")
    return made


@pytest.fixture
def call(registry, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*args, env=None):
        return CliRunner().invoke(cli, args, obj={"registry": lambda: registry}, env=env)

    return call


@pytest.fixture
def recipe(call):
    """The resolved recipe of ``run --dry-run ARGS``."""

    def recipe(*args, env=None):
        result = call("run", "--dry-run", *args, env=env)
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        return tomllib.loads(result.stdout)

    return recipe
