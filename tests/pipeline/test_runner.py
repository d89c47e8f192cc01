"""Runs: what is done once, what is refused, what fails in its own cell."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from backdoorkit import hookimpl
from backdoorkit.errors import InputError, StructureError
from backdoorkit.hooks.registry import Registry
from backdoorkit.pipeline.plan import StepKind
from backdoorkit.pipeline.recipe import Recipe
from backdoorkit.pipeline.results import NO_DEFENSE, Row
from backdoorkit.pipeline.runner import RunResult
from backdoorkit.pipeline.store import Store

MakeRecipe = Callable[..., Recipe]
RunRecipe = Callable[[Recipe], RunResult]


def defense(behavior: str) -> dict[str, str]:
    return {"name": "toy-defense", "behavior": behavior}


def row(result: RunResult, defense: str) -> Row:
    return next(row for row in result.table.rows if row.defense == defense)


def test_the_table_has_the_victim_and_each_defense(recipe: MakeRecipe, run: RunRecipe) -> None:
    result = run(recipe(defenses=[{"name": "toy-defense"}]))
    assert [r.defense for r in result.table.rows] == [NO_DEFENSE, "toy-defense"]
    assert result.table.columns == ("ACC", "ASR")
    assert not result.failed


def test_a_second_run_makes_nothing_and_says_the_same(
    recipe: MakeRecipe, run: RunRecipe, toy: ModuleType
) -> None:
    first = run(recipe(defenses=[{"name": "toy-defense"}]))
    toy.CALLS.clear()
    second = run(recipe(defenses=[{"name": "toy-defense"}]))
    assert toy.CALLS == []
    assert second.table.to_json() == first.table.to_json()


def test_a_row_that_is_added_costs_only_itself(
    recipe: MakeRecipe, run: RunRecipe, toy: ModuleType
) -> None:
    run(recipe())
    toy.CALLS.clear()
    run(recipe(defenses=[{"name": "toy-defense"}]))
    assert [call for call in toy.CALLS if not call.startswith("load")] == ["defend scale head"]


def test_two_stores_end_in_the_same_bits(recipe: MakeRecipe, run: RunRecipe, store: Store) -> None:
    run(recipe())
    folder = store.root / "artifacts" / StepKind.VICTIM.value
    first = {path.name: load_file(path / "model.safetensors") for path in folder.iterdir()}
    for path in folder.iterdir():
        path.rename(store.root / path.name)
    run(recipe())
    for path in folder.iterdir():
        again = load_file(path / "model.safetensors")
        assert all(torch.equal(again[name], value) for name, value in first[path.name].items())


def test_a_damaged_artifact_is_made_again(
    recipe: MakeRecipe, run: RunRecipe, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    first = run(recipe())
    victim = next((store.root / "artifacts" / StepKind.VICTIM.value).iterdir())
    weights = victim / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    again = run(recipe())
    assert "damaged" in caplog.text
    assert again.table.rows[0].mean("ACC") == first.table.rows[0].mean("ACC")


def test_a_missing_layer_is_refused_before_anything_is_trained(
    recipe: MakeRecipe, run: RunRecipe, store: Store
) -> None:
    with pytest.raises(StructureError, match="toy-defense cannot work on toy-network: conv1"):
        run(recipe(defenses=[defense("refuse")]))
    assert not (store.root / "artifacts" / StepKind.VICTIM.value).exists()


@pytest.mark.parametrize(
    ("behavior", "message"),
    [
        ("reach for training data", "'training-data', which its 'needs' do not declare"),
        ("raise", r"RuntimeError\('something\\nunforeseen'\)"),
        ("break weights", "non-finite values"),
        ("other architecture", "another architecture"),
        ("oracle", "--oracle"),
    ],
)
def test_what_a_defense_does_wrong_is_told_in_its_cell_and_stops_no_other(
    recipe: MakeRecipe, run: RunRecipe, behavior: str, message: str
) -> None:
    result = run(recipe(defenses=[defense(behavior), defense("scale head")]))
    assert result.failed
    (error,) = row(result, f"toy-defense (behavior={behavior})").errors
    assert re.search(message, error)
    assert row(result, "toy-defense (behavior=scale head)").mean("ACC") is not None


def test_the_traceback_of_a_failure_is_kept_for_its_author(
    recipe: MakeRecipe, run: RunRecipe
) -> None:
    result = run(recipe(defenses=[defense("raise")]))
    (kept,) = (result.directory / "errors").iterdir()
    assert 'raise RuntimeError("something' in kept.read_text()


def test_a_failed_step_is_tried_again(recipe: MakeRecipe, run: RunRecipe, toy: ModuleType) -> None:
    run(recipe(defenses=[defense("raise")]))
    run(recipe(defenses=[defense("raise")]))
    assert toy.CALLS.count("defend raise") == 2


def test_oracle_is_permitted_by_the_run_and_marked_in_record_and_table(
    recipe: MakeRecipe, run: RunRecipe
) -> None:
    result = run(recipe(defenses=[defense("oracle")], oracle=True))
    assert not result.failed
    assert "toy-defense (oracle)" in result.table.to_text()
    assert json.loads((result.directory / "record.json").read_text())["oracle_used"] is True
    assert not result.table.rows[0].oracle


def test_global_randomness_is_the_same_in_every_run_and_unchanged_after(
    recipe: MakeRecipe, run: RunRecipe, store: Store
) -> None:
    state = torch.get_rng_state()
    result = run(recipe(defenses=[defense("draw globally")]))
    assert torch.equal(torch.get_rng_state(), state)
    assert not result.failed
    record = json.loads((result.directory / "record.json").read_text())
    drawn = [s["facts"]["details"]["draw"] for s in record["steps"] if s["kind"] == "repaired"]
    for path in (store.root / "artifacts" / StepKind.DEFEND.value).iterdir():
        path.rename(store.root / path.name)
    torch.rand(3)
    result = run(recipe(defenses=[defense("draw globally")]))
    record = json.loads((result.directory / "record.json").read_text())
    assert drawn == [
        s["facts"]["details"]["draw"] for s in record["steps"] if s["kind"] == "repaired"
    ]


def test_the_clean_twin_has_an_accuracy_and_no_attack_success(
    recipe: MakeRecipe, run: RunRecipe
) -> None:
    result = run(recipe(attacks=[{"name": "none"}]))
    assert result.table.rows[0].mean("ACC") is not None
    assert result.table.rows[0].mean("ASR") is None


def test_a_metric_sees_the_poison_record_and_what_a_defense_kept_only_if_it_says_so(
    recipe: MakeRecipe, run: RunRecipe
) -> None:
    defenses = [{"name": "toy-defense"}]
    told = run(recipe(metrics=[{"name": "toy-poison-metric"}], defenses=defenses)).table
    blind = run(recipe(metrics=[{"name": "toy-blind-metric"}], defenses=defenses)).table
    assert told.rows[1].mean("poisoned") == 16  # a tenth of 160 training images
    assert told.rows[1].mean("outputs") == 1
    assert told.rows[1].mean("has baseline") == 0  # not declared
    assert blind.rows[1].mean("poisoned") is None


def test_two_metrics_of_one_column_are_refused_in_their_cell(
    recipe: MakeRecipe, run: RunRecipe
) -> None:
    twice = [{"name": "toy-poison-metric"}, {"name": "toy-blind-metric"}]
    (error,) = run(recipe(metrics=twice)).table.rows[0].errors
    assert "both make the column poisoned" in error


def test_a_detector_gives_a_verdict(recipe: MakeRecipe, run: RunRecipe) -> None:
    (verdict,) = run(recipe(detectors=[{"name": "toy-detector"}])).table.detections
    assert verdict.detected is False
    assert verdict.score is not None


def test_imported_weights_are_not_trained(
    recipe: MakeRecipe, run: RunRecipe, store: Store, toy: ModuleType
) -> None:
    first = run(recipe(attacks=[{"name": "none"}]))
    victim = next((store.root / "artifacts" / StepKind.VICTIM.value).iterdir())
    stored = load_file(victim / "model.safetensors")
    network = {
        name.removeprefix("network."): value
        for name, value in stored.items()
        if name.startswith("network.")
    }
    weights = store.root / "weights.pt"
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in network.items()}}, weights
    )
    model = {"name": "toy-network", "weights": str(weights)}
    imported = run(recipe(model=model))
    assert imported.table.rows[0].mean("ACC") == first.table.rows[0].mean("ACC")
    assert imported.table.rows[0].mean("ASR") is not None
    assert imported.table.rows[0].cells[0].cost.gradient_steps == 0


def test_weights_that_do_not_fit_end_the_run_before_anything_is_made(
    recipe: MakeRecipe, run: RunRecipe, store: Store, tmp_path: Path
) -> None:
    weights = tmp_path / "other.pt"
    torch.save({"fc.weight": torch.zeros(4, 3)}, weights)
    with pytest.raises(InputError, match=r"other\.pt"):
        run(recipe(model={"name": "toy-network", "weights": str(weights)}))
    assert not (store.root / "artifacts" / StepKind.VICTIM.value).exists()


def test_the_number_of_threads_is_the_recipes_and_afterwards_what_it_was(
    recipe: MakeRecipe, run: RunRecipe
) -> None:
    before = torch.get_num_threads()
    result = run(recipe(threads=before + 1))
    assert torch.get_num_threads() == before
    record = json.loads((result.directory / "record.json").read_text())
    victim = next(step for step in record["steps"] if step["kind"] == "victim")
    assert victim["facts"]["hardware"]["threads"] == before + 1


def test_an_executor_of_a_plugin_carries_out_what_is_not_done_before(
    recipe: MakeRecipe, run: RunRecipe, toy: ModuleType
) -> None:
    result = run(recipe(executor="toy-executor"))
    assert "execute victim predictions metrics" in toy.CALLS
    assert not result.failed


def test_lifecycle_hooks_see_the_run_and_every_step(
    recipe: MakeRecipe, run: RunRecipe, registry: Registry
) -> None:
    seen: list[str] = []

    class Observer:
        @hookimpl
        def backdoorkit_run_begin(self, run: Any) -> None:
            seen.append("begin")

        @hookimpl(wrapper=True)
        def backdoorkit_step(self, run: Any, step: Any) -> Iterator[None]:
            result = yield
            seen.append(step.kind.value)
            return result

        @hookimpl
        def backdoorkit_run_end(self, run: Any, error: BaseException | None) -> None:
            seen.append(f"end {error}")

    registry.register(Observer(), name="observer")
    run(recipe())
    assert seen == ["begin", "data", "poison", "victim", "predictions", "metrics", "end None"]


def test_the_run_leaves_recipe_table_record_and_report(
    recipe: MakeRecipe, run: RunRecipe, registry: Registry
) -> None:
    wanted = recipe(defenses=[{"name": "toy-defense"}], name="toy")
    result = run(wanted)
    assert Recipe.from_file(result.directory / "recipe.toml", registry) == wanted
    record = json.loads((result.directory / "record.json").read_text())
    victim = next(step for step in record["steps"] if step["kind"] == "victim")
    assert victim["facts"]["cost"]["gradient_steps"] == 2 * 5  # 160 images in batches of 32
    assert victim["facts"]["cost"]["samples_seen"] == 320
    assert victim["facts"]["cost"]["peak_memory_bytes"] > 0
    html = result.report.read_text()
    assert "data:image/png;base64," in html
    assert "toy-defense" in html


def test_what_an_attack_notes_is_in_record_and_report(recipe: MakeRecipe, run: RunRecipe) -> None:
    result = run(recipe())
    record = json.loads((result.directory / "record.json").read_text())
    (poison,) = (step for step in record["steps"] if step["kind"] == "poison")
    assert poison["facts"]["notes"] == {"toy-attack": {"patch_quality": 0.875}}
    assert "toy-attack: patch quality" in result.report.read_text()


def test_the_report_escapes_what_it_shows(recipe: MakeRecipe, run: RunRecipe) -> None:
    result = run(recipe(defenses=[defense("<script>alert(1)</script>")]))
    html = result.report.read_text()
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html
