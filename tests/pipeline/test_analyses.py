"""Analyses: what they are handed, what becomes of their numbers and figures."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from safetensors.torch import load_file, save_file

from backdoorkit import Need
from backdoorkit.api import AnalysisResult
from backdoorkit.errors import ContractError, NeedNotDeclaredError, StructureError
from backdoorkit.figures import new_figure
from backdoorkit.pipeline import envelope
from backdoorkit.pipeline.plan import StepKind, make_plan
from backdoorkit.pipeline.recipe import Recipe
from backdoorkit.testing import tiny_context, tiny_victim

ANALYSIS = [{"name": "toy-analysis"}]


def plan(recipe: Recipe):
    return make_plan(recipe, data_fingerprint=lambda _: "", file_fingerprint=lambda _: "")


def keys(recipe: Recipe, kind: StepKind) -> set[str]:
    return {step.key for step in plan(recipe).of_kind(kind)}


def artifact(store: Any) -> Path:
    (path,) = (store.root / "artifacts" / "analysis").iterdir()
    return path


def test_numbers_and_figures_reach_store_table_and_report(recipe, run, store) -> None:
    attacks = [{"name": "toy-attack", "poison_rate": 0.3}]
    training = {"epochs": 6, "batch_size": 16, "precision": "float32"}
    result = run(recipe(attacks=attacks, analyses=ANALYSIS, train=training))
    assert not result.failed
    (finding,) = result.table.findings
    assert finding.values["success"] > 0.9 > 0.5 > finding.values["twin's success"]
    assert finding.values["poisoned"] == 48  # 30 % of 160
    path = artifact(store)
    assert (path / "toy-figure.png").read_bytes().startswith(b"\x89PNG")
    assert load_file(path / "tensors.safetensors")["kinds"].sum() == 48
    stored = json.loads((path / "values.json").read_text())
    assert stored["values"] == dict(finding.values)
    details = json.loads((path / "manifest.json").read_text())["facts"]["details"]
    assert details == {"reserve": 32, "training": 160}

    text = result.table.to_text()
    assert "toy-attack  toy-analysis  0 " in text
    assert "success" in text
    (told,) = result.table.to_json()["analyses"]
    assert told["values"]["nothing"] is None
    assert told["figures"] == {"toy-figure": str(path / "toy-figure.png")}
    report = result.report.read_text()
    picture = base64.b64encode((path / "toy-figure.png").read_bytes()).decode()
    assert f"data:image/png;base64,{picture}" in report
    assert "Success &lt;b&gt;here&lt;/b&gt; &amp; there." in report


def test_the_clean_twin_is_the_victim_of_the_row_without_attack(recipe, run, toy) -> None:
    both = recipe(attacks=[{"name": "toy-attack"}, {"name": "none"}], analyses=ANALYSIS)
    assert len(keys(both, StepKind.VICTIM)) == 2
    assert keys(both, StepKind.VICTIM) == keys(recipe(analyses=ANALYSIS), StepKind.VICTIM)
    run(recipe(analyses=ANALYSIS))
    toy.CALLS.clear()
    again = run(both)
    assert "analyze" not in toy.CALLS  # found in the store
    assert [finding.attack for finding in again.table.findings] == ["toy-attack", "none"]


def test_an_analysis_changes_no_other_key(recipe) -> None:
    plain = {step.key for step in plan(recipe()).steps}
    assert plain < {step.key for step in plan(recipe(analyses=ANALYSIS)).steps}


def test_without_an_attack_it_is_left_out_with_a_note(recipe, run, toy) -> None:
    analyses = [*ANALYSIS, {"name": "toy-glance"}]
    result = run(recipe(attacks=[{"name": "none"}], analyses=analyses))
    assert not result.failed
    assert "analyze" not in toy.CALLS
    note = "skipped: none, toy-analysis: it needs an attack (clean-twin, poison-record, trigger)"
    assert result.table.to_text().count(note) == 1
    assert note in result.report.read_text()
    skipped, done = result.table.to_json()["analyses"]
    assert (skipped["values"], bool(skipped["skipped"])) == ({}, True)
    assert done["values"]["accuracy"] > 0.5


def test_what_a_model_from_elsewhere_has_not_got_is_refused_first(recipe, run, toy, tmp_path):
    state = toy.ToyArchitecture(toy.NoOptions()).build((3, 16, 16), 4).state_dict()
    weights = tmp_path / "victim.safetensors"
    save_file(state, weights)
    model = {"name": "toy-network", "weights": str(weights)}
    wanted = "needs the training data and the record of who was poisoned and a clean twin"
    with pytest.raises(StructureError, match=wanted):
        run(recipe(model=model, analyses=ANALYSIS))
    result = run(recipe(model=model, analyses=[{"name": "toy-glance"}]))
    assert not result.failed


def test_a_recipe_is_the_same_when_written_and_read_again(recipe, registry) -> None:
    made = recipe(analyses=ANALYSIS)
    assert Recipe.from_mapping(made.to_mapping(), registry) == made
    assert "analyses" not in recipe().to_mapping()


# -- the envelope ----------------------------------------------------------------------------------


def examine(toy: Any, needs: set[Need], look: Callable[..., AnalysisResult], **truth: Any) -> Any:
    class Looks(toy.ToyGlance):
        def run(self, task, context):
            return look(task)

    info = attrs.evolve(toy.backdoorkit_analyses()[1], needs=needs)
    victim = tiny_victim()
    return envelope.run_analysis(
        Looks(toy.NoOptions()),
        info,
        victim.resources(),
        attrs.evolve(victim.truth(), **truth),
        tiny_context("toy-glance"),
    )


@pytest.mark.parametrize("name", ["plant", "kinds", "clean_twin", "test", "clean"])
def test_what_was_not_declared_cannot_be_reached(toy, name) -> None:
    with pytest.raises(NeedNotDeclaredError, match="needs"):
        examine(toy, {Need.WEIGHTS}, lambda task: getattr(task, name))


def test_what_nobody_has_is_an_error(toy) -> None:
    with pytest.raises(ContractError, match="'clean-twin', which this run has not got"):
        examine(toy, {Need.CLEAN_TWIN}, lambda task: task.clean_twin, clean_twin=None)


@pytest.mark.parametrize(
    ("result", "fault"),
    [
        ({"values": {"r": float("nan")}}, "finite number"),
        ({"values": {"r": "high"}}, "finite number"),
        ({"values": {"r": True}}, "finite number"),
        ({"values": {}, "details": {"r": {1, 2}}}, "JSON"),
        ({"values": {}, "figures": {"../x": new_figure()[0]}}, "lower-case words"),
        ({"values": {}, "figures": {"x": "a picture"}}, "new_figure"),
        ({"values": {}, "captions": {"x": "Words."}}, "no figure"),
    ],
)
def test_what_comes_back_is_checked(toy, result, fault) -> None:
    with pytest.raises(ContractError, match=fault):
        examine(toy, set(), lambda _: AnalysisResult(**result))


def test_planted_images_bear_the_label_that_the_attacker_wants(toy) -> None:
    seen = []

    def look(task):
        seen.append(task.plant(task.test))
        return AnalysisResult(values={"n": len(task.test)})

    examine(toy, {Need.TRIGGER, Need.TEST_DATA}, look)
    assert set(seen[0].labels.tolist()) == {tiny_victim().target}
    assert len(seen[0]) == 192  # of 256: a quarter is of the target class
    assert bool((seen[0].images[..., -4:, -4:] == 255).all())
