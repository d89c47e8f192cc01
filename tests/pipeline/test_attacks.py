"""What a run makes of attacks: controlled trainings, frozen sets, assets, several in one."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from backdoorkit.errors import ConfigError, InputError
from backdoorkit.hooks.registry import Registry
from backdoorkit.pipeline.grids import footnotes
from backdoorkit.pipeline.plan import Plan, StepKind, make_plan
from backdoorkit.pipeline.recipe import Recipe

LEARNED = [{"name": "learned"}]
DATA_DEFENSE = [{"name": "looks-at-data"}]
COMPOSED = [
    {
        "name": "composed",
        "parts": [
            {"name": "toy-attack", "target": 0},
            {"name": "searched", "target": 2, "poison_rate": 0.5},
        ],
    }
]


@pytest.fixture
def attacks(registry: Registry) -> Iterator[ModuleType]:
    """The toy attacks, registered."""
    path = Path(__file__).with_name("toy_attacks.py")
    spec = importlib.util.spec_from_file_location("toy_attacks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["toy_attacks"] = module
    spec.loader.exec_module(module)
    registry.register(module, name="attacks")
    yield module
    del sys.modules["toy_attacks"]


@pytest.fixture(autouse=True)
def _registered(attacks: ModuleType) -> None:
    attacks.CALLS.clear()


def plan(recipe: Recipe) -> Plan:
    return make_plan(recipe, data_fingerprint=lambda _: "1", file_fingerprint=lambda _: "w")


def kinds(recipe: Recipe) -> list[str]:
    return [step.kind.value for step in plan(recipe).steps]


def made(store: Any, kind: StepKind) -> Path:
    (path,) = (store.root / "artifacts" / kind.value).iterdir()
    return path


def facts(path: Path) -> dict[str, Any]:
    return json.loads((path / "manifest.json").read_text())["facts"]


def value(result: Any, column: str, row: int = 0) -> dict[str, Any]:
    return result.table.rows[row].cells[0].metrics[column]


# -- control of the training -----------------------------------------------------------------------


def test_a_controlled_training_sees_clean_images_and_its_last_trigger_is_kept(
    recipe, run, store, attacks
) -> None:
    result = run(recipe(attacks=LEARNED))
    assert not result.failed
    assert attacks.CALLS == ["control 160", "epoch 0", "epoch 1"]
    victim, prepared = made(store, StepKind.VICTIM), made(store, StepKind.POISON)
    assert not (victim / "poison.safetensors").exists()
    assert not (prepared / "poison.safetensors").exists()
    before = load_file(prepared / "trigger.safetensors")["shade"]
    after = load_file(victim / "trigger.safetensors")["shade"]
    assert float(before) == 0.5
    assert 0.5 < float(after) < 0.7
    shown = load_file(victim / "samples.safetensors")["trigger"][0, 0, 0, 0]
    assert int(shown) == round(float(after) * 255)


def test_a_training_set_is_frozen_only_for_those_who_look_at_data(recipe) -> None:
    assert "frozen" not in kinds(recipe(attacks=LEARNED, defenses=[{"name": "toy-defense"}]))
    for asks in ({"defenses": DATA_DEFENSE}, {"metrics": [{"name": "toy-poison-metric"}]}):
        steps = kinds(recipe(attacks=LEARNED, **asks))
        assert steps.count("frozen") == 1
        assert steps.index("victim") < steps.index("frozen")
    data_attack = kinds(recipe(defenses=DATA_DEFENSE))
    assert "frozen" not in data_attack


def test_a_defense_by_data_gets_what_the_learned_trigger_poisons(recipe, run, store) -> None:
    result = run(recipe(attacks=LEARNED, defenses=DATA_DEFENSE, metrics=[{"name": "toy-metric"}]))
    assert not result.failed
    assert facts(made(store, StepKind.DEFEND))["details"] == {"images": 160, "shaded": 16}
    frozen = made(store, StepKind.FREEZE)
    assert facts(frozen)["kinds"] == {"clean": 144, "poisoned": 16, "cover": 0}
    shade = load_file(made(store, StepKind.VICTIM) / "trigger.safetensors")["shade"]
    images = load_file(frozen / "poison.safetensors")["images"]
    assert set(images[..., :4, :4].unique().tolist()) == {round(float(shade) * 255)}


def test_a_metric_of_the_record_sees_the_frozen_set(recipe, run) -> None:
    result = run(recipe(attacks=LEARNED, metrics=[{"name": "toy-poison-metric"}]))
    assert value(result, "poisoned")["value"] == 16


def test_any_attack_poisons_batch_by_batch(recipe, run, store) -> None:
    result = run(recipe(attacks=[{"name": "toy-attack", "index_policy": "per-batch"}]))
    assert not result.failed
    assert not (made(store, StepKind.VICTIM) / "poison.safetensors").exists()


def test_what_the_data_do_not_offer_is_refused_before_a_controlled_training(recipe, run) -> None:
    attack = {
        "name": "learned",
        "label_map": "source-specific",
        "source_classes": [1],
        "poison_rate": 0.9,
    }
    with pytest.raises(InputError, match="wants 144 samples of the source classes and there are"):
        run(recipe(attacks=[attack]))


def test_an_interrupted_controlled_training_ends_with_the_same_bits(
    recipe, run, store, attacks, monkeypatch
) -> None:
    chosen = recipe(attacks=LEARNED, train={"epochs": 4, "precision": "float32"})
    run(chosen)
    path = made(store, StepKind.VICTIM)
    whole = {name: load_file(path / f"{name}.safetensors") for name in ("model", "trigger")}
    path.rename(store.root / "whole")

    slot = store.slot("victim", facts_key(store.root / "whole"), interval=0.0)
    monkeypatch.setattr(type(store), "slot", lambda *_, **__: slot)

    class Killed(BaseException):
        pass

    def kill(self, model, epoch, metrics):
        if epoch == 2:
            raise Killed
        return attacks.Learning.after_epoch(self, model, epoch, metrics)

    dying = type("Dying", (attacks.Learning,), {"after_epoch": kill})

    def control(self, trigger, data, context):
        return dying(trigger, context)

    with monkeypatch.context() as patch:
        patch.setattr(attacks.Learned, "control", control)
        with pytest.raises(Killed):
            run(chosen)
    attacks.CALLS.clear()
    run(chosen)
    assert attacks.CALLS == ["control 160", "epoch 2", "epoch 3"]
    again = made(store, StepKind.VICTIM)
    for name, tensors in whole.items():
        kept = load_file(again / f"{name}.safetensors")
        assert all(torch.equal(kept[key], value) for key, value in tensors.items())


def facts_key(path: Path) -> str:
    return json.loads((path / "manifest.json").read_text())["key"]


# -- assets ----------------------------------------------------------------------------------------


def test_an_asset_is_made_once_for_all_runs_that_can_share_it(recipe, run, attacks) -> None:
    run(recipe(attacks=[{"name": "searched"}]))
    run(recipe(attacks=[{"name": "searched", "poison_rate": 0.2}]))
    assert attacks.CALLS == ["search 0.5"]
    run(recipe(attacks=[{"name": "searched", "shade": 0.7}]))
    run(recipe(attacks=[{"name": "searched"}], seeds=[1]))
    assert attacks.CALLS == ["search 0.5", "search 0.7", "search 0.5"]


def test_a_reused_asset_gives_the_same_victim_as_one_that_is_made(recipe, run, store) -> None:
    chosen = recipe(attacks=[{"name": "searched"}])
    run(chosen)
    first = load_file(made(store, StepKind.POISON) / "poison.safetensors")
    for kind in (StepKind.POISON, StepKind.VICTIM):
        path = made(store, kind)
        path.rename(store.root / path.name)
    run(chosen)
    again = load_file(made(store, StepKind.POISON) / "poison.safetensors")
    assert all(torch.equal(again[name], value) for name, value in first.items())


def test_what_an_asset_took_is_told_by_every_step_that_uses_it(recipe, run, store) -> None:
    run(recipe(attacks=[{"name": "searched"}]))
    run(recipe(attacks=[{"name": "searched", "target": 1}]))
    steps = [facts(path) for path in (store.root / "artifacts" / "poison").iterdir()]
    assert sorted(step["assets"][0]["reused"] for step in steps) == [False, True]
    for step in steps:
        (asset,) = step["assets"]
        assert (asset["name"], asset["samples_seen"], asset["gradient_steps"]) == ("shade", 100, 10)
        assert step["cost"]["samples_seen"] == 0


def test_a_damaged_asset_is_made_again(recipe, run, store, attacks, caplog) -> None:
    run(recipe(attacks=[{"name": "searched"}]))
    (path,) = (store.root / "artifacts" / "asset").iterdir()
    (path / "asset.safetensors").write_bytes(b"something else")
    run(recipe(attacks=[{"name": "searched", "poison_rate": 0.2}]))
    assert "damaged" in caplog.text
    assert attacks.CALLS == ["search 0.5", "search 0.5"]


# -- chosen test images ----------------------------------------------------------------------------


def test_only_chosen_test_images_count(recipe, run, store) -> None:
    result = run(recipe(attacks=[{"name": "chosen"}]))
    assert not result.failed
    assert facts(made(store, StepKind.POISON))["test_data"] is True
    assert "chosen: the attacker chose among the test images." in footnotes(result.table)
    assert "known to the attacker, who chose among them" in result.report.read_text()
    (predictions,) = (store.root / "artifacts" / "predictions").iterdir()
    targets = load_file(predictions / "predictions.safetensors")["triggered.targets"]
    assert int((targets == 0).sum()) == 3
    assert int((targets == -1).sum()) == 61


# -- several attacks in one ------------------------------------------------------------------------


def test_parts_poison_disjoint_samples_at_the_rates_they_ask_for(recipe, run, store) -> None:
    result = run(recipe(attacks=COMPOSED))
    assert not result.failed
    assert result.table.rows[0].attack == "toy-attack + searched"
    record = load_file(made(store, StepKind.POISON) / "poison.safetensors")
    assert len(record["positions"].unique()) == len(record["positions"]) == 16 + 80
    assert torch.bincount(record["labels"], minlength=4).tolist() == [16, 0, 80, 0]
    white = (record["images"][..., -4:, -4:] == 255).flatten(1).all(1)
    assert torch.equal(white, record["labels"] == 0)


def test_every_part_is_shown_to_the_model(recipe, run, store) -> None:
    run(recipe(attacks=COMPOSED))
    (predictions,) = (store.root / "artifacts" / "predictions").iterdir()
    tensors = load_file(predictions / "predictions.safetensors")
    assert len(tensors["clean.logits"]) == 64
    assert torch.bincount(tensors["triggered.parts"]).tolist() == [64, 64]
    assert tensors["triggered.targets"].tolist() == [0] * 64 + [2] * 64
    assert facts(predictions)["evaluation"]["part_names"] == ["toy-attack", "searched"]
    samples = load_file(made(store, StepKind.VICTIM) / "samples.safetensors")
    assert {"triggered.0", "triggered.1", "trigger.0", "trigger.1"} <= set(samples)


def test_two_parts_of_one_name_draw_different_samples(recipe, run, store) -> None:
    parts = [{"name": "toy-attack", "target": 0}, {"name": "toy-attack", "target": 1}]
    result = run(recipe(attacks=[{"name": "composed", "parts": parts}]))
    assert not result.failed
    record = load_file(made(store, StepKind.POISON) / "poison.safetensors")
    assert torch.bincount(record["labels"], minlength=4).tolist() == [16, 16, 0, 0]
    (predictions,) = (store.root / "artifacts" / "predictions").iterdir()
    names = facts(predictions)["evaluation"]["part_names"]
    assert names == ["toy-attack (target=0)", "toy-attack (target=1)"]


def test_more_than_the_others_leave_is_refused_with_the_counts(recipe, run) -> None:
    parts = [{"name": "toy-attack", "poison_rate": 0.8}, {"name": "searched", "poison_rate": 0.3}]
    with pytest.raises(InputError, match="wants 48 samples and there are 32; lower the rate"):
        run(recipe(attacks=[{"name": "composed", "parts": parts}]))


def test_a_composed_attack_survives_the_recipe_s_text(recipe, registry) -> None:
    import tomllib

    chosen = recipe(attacks=COMPOSED)
    again = Recipe.from_mapping(tomllib.loads(chosen.to_toml()), registry)
    assert again == chosen
    assert [s.key for s in plan(again).steps] == [s.key for s in plan(chosen).steps]


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ({}, r"attacks\[0\].parts: must be an array of at least two tables"),
        ({"parts": [{"name": "toy-attack"}]}, "at least two"),
        ({"parts": [{"name": "toy-attack"}] * 2}, r"attacks\[0\].parts\[1\]: is the same as"),
        ({"parts": [{"name": "none"}, {"name": "toy-attack"}]}, "'none' cannot be part"),
        ({"parts": [{"name": "learned"}, {"name": "toy-attack"}]}, "learned controls the training"),
        (
            {"parts": [{"name": "toy-attack", "rate": 1}, {"name": "searched"}]},
            r"attacks\[0\].parts\[0\].rate: unknown key",
        ),
        ({"part": []}, r"attacks\[0\].part: unknown key; did you mean 'parts'"),
    ],
)
def test_what_cannot_be_composed_is_refused(recipe, attack, message) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(attacks=[{"name": "composed", **attack}])


def test_composed_attacks_that_differ_in_options_are_told_apart(recipe) -> None:
    other = [
        {**COMPOSED[0], "parts": [{"name": "toy-attack", "target": 3}, COMPOSED[0]["parts"][1]]}
    ]
    labels = [entry.attack for entry in plan(recipe(attacks=COMPOSED + other)).entries]
    assert labels == ["toy-attack + searched (target=0)", "toy-attack + searched (target=3)"]


# -- what attacks cost -----------------------------------------------------------------------------


def test_a_run_tells_what_its_attacks_cost(recipe, run) -> None:
    result = run(recipe(attacks=[{"name": "none"}, {"name": "searched"}]))
    (cost,) = result.table.attacks
    assert cost.attack == "searched"
    assert cost.samples_seen == 100 + 2 * 160  # the search and two epochs
    assert cost.gradient_steps == 10 + 2 * 5
    assert cost.training_seconds > 0
    text = result.table.to_text()
    assert "assets s  poisoning s  training s  samples seen" in text
    assert "What the attacks cost" in result.report.read_text()
