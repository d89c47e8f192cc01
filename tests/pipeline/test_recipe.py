"""Recipes: strict reading with every fault at once, and writing that reads back equal."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Literal

import attrs
import pytest

from backdoorkit import PoisonOptions, TrainOptions, option
from backdoorkit.data.options import DataOptions
from backdoorkit.errors import ConfigError, ContractError, InputError
from backdoorkit.hooks.registry import Registry
from backdoorkit.pipeline import catalog
from backdoorkit.pipeline.keys import content_key
from backdoorkit.pipeline.recipe import (
    STANDARD_METRICS,
    HereText,
    Recipe,
    Statistics,
    read_recipe_file,
)
from backdoorkit.testing import light_method, light_plugin


@attrs.frozen(kw_only=True)
class ImageOptions:
    size: int = option(8, ge=1, help="Side.")
    path: Path | None = option(None, help="Folder.")


@attrs.frozen(kw_only=True)
class NetworkOptions:
    width: int = option(16, ge=1, help="Width.")


@attrs.frozen(kw_only=True)
class PruningOptions:
    ratio: float = option(0.5, ge=0, le=1, help="Share.")
    layers: tuple[str, ...] = option((), help="Layers.")
    rule: Literal["l1", "l2"] = option("l1", help="Rule.")
    seed_image: Path | None = option(None, help="Picture.")


def light_methods():
    paper = {"poison_rate": 0.3, "target": 2}
    return light_plugin(
        datasets=[light_method("digits", ImageOptions), light_method("letters", ImageOptions)],
        models=[light_method("small-cnn", NetworkOptions)],
        attacks=[light_method("patch", PoisonOptions, presets={"paper": paper})],
        defenses=[light_method("prune", PruningOptions)],
        detectors=[light_method("scan")],
        metrics=[light_method(name) for name in STANDARD_METRICS],
    )


@pytest.fixture
def registry():
    made = Registry()
    made.register(catalog)
    made.register(light_methods(), name="light")
    return made


def faults(registry, mapping):
    with pytest.raises(ConfigError) as caught:
        Recipe.from_mapping(mapping, registry)
    return [str(issue) for issue in caught.value.issues]


def test_what_is_not_said_has_its_default(registry):
    recipe = Recipe.from_mapping({"attacks": [{"name": "patch"}]}, registry)
    assert (recipe.name, recipe.seeds, recipe.device, recipe.oracle) == ("run", (0,), "auto", False)
    assert [choice.name for choice in recipe.data] == ["digits"]
    assert recipe.data[0].options == DataOptions()
    assert [choice.name for choice in recipe.models] == ["small-cnn"]
    assert recipe.models[0].weights is None
    assert recipe.models[0].normalization == "data"
    assert recipe.train == (TrainOptions(),)
    assert [choice.name for choice in recipe.metrics] == list(STANDARD_METRICS)
    assert recipe.attacks[0].config == PoisonOptions()
    assert recipe.attacks[0].method.qualified_name == "attack:patch"


def test_without_an_attack_the_model_is_its_clean_twin(registry):
    recipe = Recipe.from_mapping({"defenses": [{"name": "prune"}]}, registry)
    assert [choice.name for choice in recipe.attacks] == ["none"]
    with pytest.raises(ContractError, match="stands for no method"):
        _ = recipe.attacks[0].method


FULL = """
name = "full"
seeds = [3, 1]
device = "cuda:1"
oracle = true

[[data]]
name = "digits"
reserve_size = 7
train_size = 100

[[data]]
name = "letters"
path = "images"
size = 32

[model]
name = "small-cnn"
weights = "victim.pt"
normalization = { mean = [0.5, 0.4, 0.3], std = [1, 2, 3] }

[[train]]
epochs = 1

[[train]]
epochs = 2
milestones = [0.25]

[[attacks]]
name = "patch"
preset = "paper"
target = 1

[[attacks]]
name = "none"

[[defenses]]
name = "prune"
layers = ["a", "quo\\"ted"]
seed_image = "seed.png"

[[detectors]]
name = "scan"

[[metrics]]
name = "accuracy"
"""


@pytest.fixture
def full(registry, tmp_path):
    file = tmp_path / "full.toml"
    file.write_text(FULL)
    return Recipe.from_file(file, registry)


def test_a_full_recipe_is_resolved(full, tmp_path):
    assert full.seeds == (3, 1)
    assert [choice.options.reserve_size for choice in full.data] == [7, None]
    assert full.data[0].options.train_size == 100
    assert full.data[1].config == ImageOptions(size=32, path=tmp_path / "images")
    assert full.models[0].weights == tmp_path / "victim.pt"
    assert full.models[0].normalization == Statistics(mean=(0.5, 0.4, 0.3), std=(1, 2, 3))
    assert [options.epochs for options in full.train] == [1, 2]
    assert full.attacks[0].config == PoisonOptions(poison_rate=0.3, target=1)
    assert full.defenses[0].config.layers == ("a", 'quo"ted')
    assert full.defenses[0].config.seed_image == tmp_path / "seed.png"
    assert [choice.name for choice in full.metrics] == ["accuracy"]


def test_a_recipe_reads_back_equal_from_anywhere(full, registry, tmp_path):
    text = full.to_toml()
    assert "preset" not in text
    again = Recipe.from_mapping(tomllib.loads(text), registry, tmp_path / "elsewhere")
    assert again == full
    assert again.to_toml() == text
    assert content_key(recipe=again.to_mapping()) == content_key(recipe=full.to_mapping())


def test_recipes_are_written_as_people_write_them(registry):
    recipe = Recipe.from_mapping({"seeds": [0, 1], "attacks": [{"name": "none"}]}, registry)
    text = recipe.to_toml()
    assert "seeds = [0, 1]\n" in text
    assert '\n[model]\nname = "small-cnn"\nwidth = 16\nnormalization = "data"\n' in text
    assert '\n[[attacks]]\nname = "none"\n' in text


def test_all_faults_are_reported_at_once_with_their_paths(registry):
    mapping = {
        "atacks": [],
        "seeds": [0, "1"],
        "data": [{"name": "digits", "sise": 3, "reserve_sise": 1, "test_size": 0}, {}],
        "model": {"name": "smal-cnn"},
        "train": {"epochs": -1},
        "attacks": [{"name": "patch", "poison_rate": 1.5}, {"name": "none", "target": 1}],
        "defenses": [{"name": "none"}, {"name": "prune"}, {"name": "prune", "ratio": 0.5}],
        "detectors": [{"name": "prune"}],
        "metrics": "accuracy",
    }
    assert faults(registry, mapping) == [
        "atacks: unknown key; did you mean 'attacks'?",
        "seeds[1]: must be a whole number, not '1'",
        "data[0].test_size: must be at least 1, not 0",
        "data[0].reserve_sise: unknown key; did you mean 'reserve_size'?",
        "data[0].sise: unknown key; did you mean 'size'?",
        "data[1].name: must name the dataset",
        "model.name: no model is called 'smal-cnn'; did you mean 'small-cnn'?",
        "train.epochs: must be at least 0, not -1",
        "attacks[0].poison_rate: must be at most 1, not 1.5",
        "attacks[1].target: 'none' has no options",
        "defenses[0].name: 'none' has a row in every table; leave it out",
        "defenses[2]: is the same as defenses[1]; leave one of them out",
        "detectors[0].name: no detector is called 'prune'; known: scan; there is defense:prune",
        "metrics: must be an array of tables ([[metrics]]), not 'accuracy'",
    ]


@pytest.mark.parametrize(
    ("mapping", "fault"),
    [
        ({}, "nothing to do: name at least one attack, defense, detector or analysis"),
        ({"seeds": []}, "seeds: must name at least one seed"),
        ({"seeds": [1, 1]}, r"seeds: must differ from each other, not \[1, 1\]"),
        ({"seeds": [-1]}, "seeds: must be at least 0"),
        ({"oracle": "no"}, "oracle: must be true or false, not 'no'"),
        ({"device": "gpu"}, "device: must be auto, cpu, cuda or cuda:N, not 'gpu'"),
        ({"name": "../up"}, "name: must be letters, digits"),
        ({"data": []}, r"data: must be a table \(\[data\]\) or several"),
        ({"data": {"name": "digits", "qqq": 1}}, r"data.qqq: .*size, path \(digits\), train_size"),
        ({"model": {"name": 3}}, "model.name: must be text, not 3"),
        ({"model": {"name": "small-cnn", "weights": 3}}, "model.weights: must be the path"),
        ({"model": {"name": "small-cnn", "wights": "x"}}, "wights: .*mean 'weights'"),
        ({"model": {"name": "small-cnn", "normalization": "cifar"}}, "normalization: .*'imagenet'"),
        (
            {"model": {"name": "small-cnn", "normalization": {"mean": [1.0], "std": [0.0]}}},
            r"model.normalization.std: must be greater than 0",
        ),
        (
            {"model": {"name": "small-cnn", "normalization": {"mean": [1.0], "std": []}}},
            r"model.normalization: mean and std must have one number per channel each",
        ),
        ({"attacks": [{"name": "patch", "preset": "papre"}]}, r"attacks\[0\].preset: .*'paper'"),
        ({"defenses": [{"name": "prune", "rule": "l3"}]}, r"defenses\[0\].rule: .*'l1', 'l2'"),
        ({"detectors": [{"name": "none"}]}, r"detectors\[0\].name: .*'none' is for attacks"),
        ({"train": [{}, {}]}, r"train\[1\]: is the same as train\[0\]"),
    ],
)
def test_faults_are_named(registry, mapping, fault):
    found = faults(registry, mapping)
    assert any(re.search(fault, line) for line in found), found


def test_missing_standard_metrics_are_named(registry):
    empty = Registry()
    empty.register(light_plugin(attacks=[light_method("patch", PoisonOptions)]), name="some")
    found = faults(empty, {"attacks": [{"name": "patch"}]})
    assert any(line.startswith("metrics: the standard metrics accuracy, ") for line in found)


def test_paths_of_the_command_line_start_from_the_working_directory(registry, tmp_path):
    mapping = {
        "attacks": [{"name": "none"}],
        "model": {"name": HereText("small-cnn"), "weights": HereText("a.pt")},
        "defenses": [
            {"name": "prune", "rule": HereText("l2"), "seed_image": HereText("b.png")},
            {"name": "prune", "seed_image": "b.png"},
        ],
    }
    recipe = Recipe.from_mapping(mapping, registry, tmp_path)
    assert recipe.models[0].weights == Path.cwd() / "a.pt"
    assert recipe.defenses[0].config.seed_image == Path.cwd() / "b.png"
    assert recipe.defenses[0].config.rule == "l2"
    assert recipe.defenses[1].config.seed_image == tmp_path / "b.png"


@pytest.mark.parametrize(
    ("normalization", "channels", "expected"),
    [
        ("data", 1, ((0.1,), (0.2,))),
        ("none", 2, ((0.0, 0.0), (1.0, 1.0))),
        ("imagenet", 3, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ({"mean": [0.5], "std": [0.25]}, 1, ((0.5,), (0.25,))),
    ],
)
def test_normalization_gives_mean_and_std_by_channel(registry, normalization, channels, expected):
    model = {"name": "small-cnn", "normalization": normalization}
    recipe = Recipe.from_mapping({"attacks": [{"name": "none"}], "model": model}, registry)
    assert recipe.models[0].statistics([0.1] * channels, [0.2] * channels) == expected


def test_normalization_for_other_channels_is_refused(registry):
    model = {"name": "small-cnn", "normalization": "imagenet"}
    recipe = Recipe.from_mapping({"attacks": [{"name": "none"}], "model": model}, registry)
    with pytest.raises(InputError, match=r"for 3 channels, and the images have 1"):
        recipe.models[0].statistics([0.1], [0.2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name = \n", r"not valid TOML: .*line 1"),
        (b"\xff\xfe", "not UTF-8"),
        (b"x = " + b"[" * 5000, "nested too deeply|not valid TOML"),
        (b"#" * (2 << 20), "too large"),
    ],
)
def test_files_that_are_no_recipes_are_refused_in_one_line(tmp_path, content, message):
    file = tmp_path / "r.toml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_recipe_file(file)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "missing.toml"):
        with pytest.raises(InputError, match=re.escape(f"recipe {path} cannot be read")):
            read_recipe_file(path)


def test_a_recipe_is_named_after_its_file(tmp_path):
    file = tmp_path / "my first run.v2.toml"
    file.write_text("")
    assert read_recipe_file(file) == {"name": "my-first-run.v2"}


def test_reading_a_recipe_imports_no_torch():
    code = "import sys, backdoorkit.pipeline.recipe, backdoorkit.pipeline._parsing\n"
    code += "import backdoorkit.pipeline.store\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
