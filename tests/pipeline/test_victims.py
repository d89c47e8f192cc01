"""Victims that travel: taken to another store, as to another machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from backdoorkit.errors import ConfigError, InputError
from backdoorkit.hooks.registry import Registry
from backdoorkit.pipeline.portable import copy_victim, open_victim
from backdoorkit.pipeline.recipe import Recipe
from backdoorkit.pipeline.runner import RunResult, run_recipe
from backdoorkit.pipeline.store import Store

from .conftest import Silent

TRAIN = {"epochs": 1, "batch_size": 32, "precision": "float32"}


@pytest.fixture
def folder(recipe, run, tmp_path: Path) -> Path:
    """A victim's folder, away from the store that it was made in."""
    result = run(recipe(train=TRAIN, attacks=[{"name": "toy-attack", "target": 2}], seeds=[3]))
    (artifact,) = result.victims.values()
    made = copy_victim(artifact, tmp_path / "carried", "toy-attack 3")
    shutil.rmtree(tmp_path / "store")
    return made


@pytest.fixture
def elsewhere(registry: Registry, tmp_path: Path) -> Any:
    """Runs a recipe over a victim on a machine with an empty store."""
    store = Store(tmp_path / "elsewhere")

    def run(folder: Path, **more: Any) -> RunResult:
        values = {
            "victim": str(folder),
            "metrics": [{"name": "toy-metric"}],
            "device": "cpu",
            "defenses": [{"name": "toy-defense"}],
            **more,
        }
        chosen = Recipe.from_mapping(values, registry)
        return run_recipe(chosen, registry, store, progress=Silent())

    return run


def only(tmp_path: Path, kind: str) -> Path:
    (path,) = (tmp_path / "elsewhere" / "artifacts" / kind).iterdir()
    return path


def test_defenses_and_detectors_start_from_a_victim_that_was_carried_over(
    folder, elsewhere, toy, tmp_path
) -> None:
    toy.CALLS.clear()
    result = elsewhere(folder, detectors=[{"name": "toy-detector"}])
    assert not result.failed
    assert "prepare" not in toy.CALLS
    assert [(row.attack, row.defense) for row in result.table.rows] == [
        ("toy-attack", "no defense"),
        ("toy-attack", "toy-defense"),
    ]
    assert result.table.rows[0].cells[0].seed == 3
    taken = load_file(only(tmp_path, "victim") / "model.safetensors")
    carried = load_file(folder / "model.safetensors")
    assert all(torch.equal(taken[name], value) for name, value in carried.items())


def test_what_is_measured_of_it_is_what_was_measured_at_home(
    recipe, run, elsewhere, tmp_path
) -> None:
    home = run(recipe(train=TRAIN))
    (artifact,) = home.victims.values()
    there = elsewhere(copy_victim(artifact, tmp_path / "carried", "v"))
    first, second = (result.table.rows[0].cells[0].metrics for result in (home, there))
    assert first == second


def test_its_poison_comes_along_for_those_who_look_at_data(folder, elsewhere, tmp_path) -> None:
    result = elsewhere(folder, metrics=[{"name": "toy-poison-metric"}])
    assert result.table.rows[0].cells[0].metrics["poisoned"]["value"] == 16
    assert not (tmp_path / "elsewhere" / "artifacts" / "poison").exists()


def test_a_second_run_takes_nothing_over_again(folder, elsewhere, toy) -> None:
    elsewhere(folder)
    toy.CALLS.clear()
    assert not elsewhere(folder).failed
    assert toy.CALLS == []


def test_a_recipe_that_is_written_out_finds_the_victim_again(folder, elsewhere, registry) -> None:
    import tomllib

    directory = elsewhere(folder).directory
    text = (directory / "recipe.toml").read_text()
    assert "[[attacks]]" not in text
    values = tomllib.loads(text)
    assert Recipe.from_mapping(values, registry).to_toml() == text


def test_other_images_are_refused(folder, elsewhere, toy, monkeypatch) -> None:
    from backdoorkit.testing import tiny_images

    monkeypatch.setattr(
        toy.ToyData, "load", lambda self, split, cache: tiny_images(192 if split == "train" else 64)
    )
    result = elsewhere(folder)
    (error,) = result.table.rows[0].errors
    assert "was trained on other images than those of toy-data" in error


def test_the_split_stays_the_victim_s(folder, elsewhere) -> None:
    with pytest.raises(ConfigError, match=r"data.reserve_size comes from the victim \(32\)"):
        elsewhere(folder, data={"name": "toy-data", "reserve_size": 16})
    assert not elsewhere(folder, data={"name": "toy-data"}).failed


@pytest.mark.parametrize("key", ["attacks", "model", "train", "seeds"])
def test_what_comes_from_the_victim_cannot_be_given(folder, elsewhere, key) -> None:
    given = {"attacks": [{"name": "none"}], "model": {}, "train": {}, "seeds": [0]}
    with pytest.raises(ConfigError, match=f"{key}: comes from the victim; leave it out"):
        elsewhere(folder, **{key: given[key]})


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: flip(f / "model.safetensors"), "model.safetensors does not match its checksum"),
        (lambda f: (f / "trigger.safetensors").unlink(), "trigger.safetensors is missing"),
        (lambda f: (f / "manifest.json").write_text("{}"), "does not match its checksum"),
        (lambda f: (f / "manifest.json").write_text("no json"), "damaged"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
    ],
)
def test_a_damaged_victim_is_refused_before_anything_runs(folder, damage, message) -> None:
    damage(folder)
    with pytest.raises(InputError, match=message):
        open_victim(folder)


def test_what_is_no_victim_is_refused(recipe, run, store) -> None:
    run(recipe(train=TRAIN))
    (predictions,) = (store.root / "artifacts" / "predictions").iterdir()
    with pytest.raises(InputError, match="holds no victim but 'predictions'"):
        open_victim(predictions)


def test_a_manifest_that_names_files_elsewhere_is_refused(folder) -> None:
    from backdoorkit.pipeline.store import _digest

    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["digest"]
    manifest["files"]["../secret"] = {"bytes": 1, "sha256": "0"}
    manifest["digest"] = _digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="outside the artifact"):
        open_victim(folder)


def test_imported_weights_are_named_as_such(recipe, run, store, tmp_path) -> None:
    run(recipe(train=TRAIN))
    (victim,) = (store.root / "artifacts" / "victim").iterdir()
    weights = tmp_path / "weights.safetensors"
    tensors = load_file(victim / "model.safetensors")
    own = {name: value for name, value in tensors.items() if name.startswith("network.")}
    save_file({name.removeprefix("network."): value for name, value in own.items()}, weights)
    result = run(recipe(model={"name": "toy-network", "weights": str(weights)}))
    (artifact,) = result.victims.values()
    with pytest.raises(InputError, match=r"model\.weights"):
        open_victim(artifact.path)


def test_a_copy_is_made_once_and_never_written_over(recipe, run, tmp_path) -> None:
    (artifact,) = run(recipe(train=TRAIN)).victims.values()
    first = copy_victim(artifact, tmp_path / "carried", "a / b")
    assert first.name.startswith("a-b-")
    assert copy_victim(artifact, tmp_path / "carried", "a / b") == first
    flip(first / "model.safetensors")
    with pytest.raises(InputError, match="does not match its checksum"):
        copy_victim(artifact, tmp_path / "carried", "a / b")


def test_a_victim_without_an_attack_travels_too(recipe, run, elsewhere, tmp_path) -> None:
    (artifact,) = run(recipe(train=TRAIN, attacks=[{"name": "none"}])).victims.values()
    result = elsewhere(copy_victim(artifact, tmp_path / "carried", "clean"))
    assert not result.failed
    assert result.table.rows[0].attack == "none"
