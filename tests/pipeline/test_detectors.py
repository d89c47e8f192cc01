"""Detectors of samples and of inputs: what is kept, shown and rated; and the ratings of models."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from backdoorkit.pipeline.plan import StepKind, make_plan
from backdoorkit.testing import tiny_images

RATED = [{"name": "toy-metric"}, {"name": "toy-rating"}]
INSPECTOR = [{"name": "inspector"}]
ATTACKS = [{"name": "toy-attack", "poison_rate": 0.3}, {"name": "none"}]


@pytest.fixture
def seen(registry):
    spec = importlib.util.spec_from_file_location(
        "toy_detectors", Path(__file__).with_name("toy_detectors.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["toy_detectors"] = module
    spec.loader.exec_module(module)
    registry.register(module, name="toy-detectors")
    yield module.SEEN
    del sys.modules["toy_detectors"]


def artifact(store):
    (path,) = (store.root / "artifacts" / "verdict").iterdir()
    return path


def ratings(result, of):
    return [rating for rating in result.table.ratings if rating.of == of]


def value(rating, column):
    return rating.values[column]["value"]


def test_scores_of_samples_and_inputs_are_kept_and_rated(recipe, run, store, seen):
    result = run(recipe(attacks=ATTACKS[:1], detectors=INSPECTOR, metrics=RATED))
    assert not result.failed
    samples = load_file(artifact(store) / "samples.safetensors")
    assert samples["scores"].shape == (160,)
    assert samples["flagged"].sum() == 48  # 30 % of 160 have a white corner
    (of_samples,) = ratings(result, "training samples")
    assert value(of_samples, "AUROC") == 1
    assert (value(of_samples, "count"), value(of_samples, "positives")) == (160, 48)

    screened = load_file(artifact(store) / "screening.safetensors")
    assert screened["clean.scores"].shape == screened["triggered.scores"].shape == (64,)
    labels = tiny_images(64, seed=2).labels
    assert torch.equal(screened["triggered.counts"], labels[screened["triggered.ids"]] != 0)
    (of_inputs,) = ratings(result, "inputs")
    assert value(of_inputs, "AUROC") == 1
    assert (value(of_inputs, "count"), value(of_inputs, "positives")) == (64 + 48, 48)
    assert ratings(result, "models") == []  # it says nothing of models

    (verdict,) = result.table.detections
    assert (verdict.score, verdict.detected, verdict.filter_threshold) == (None, None, 0.99)
    assert verdict.captions == {"scores": "What was seen."}
    assert (artifact(store) / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert "What was seen." in result.report.read_text()


def test_a_filter_is_shown_test_images_alone_and_in_float(recipe, run, seen):
    run(recipe(attacks=ATTACKS[1:], detectors=INSPECTOR, metrics=RATED))
    shown = torch.cat(seen)
    assert len(shown) == 64
    assert shown.min() >= 0
    assert shown.max() <= 1


def test_models_are_rated_over_attacks_and_seeds(recipe, run, seen):
    detectors = [{"name": "weigher"}]
    asked = recipe(attacks=ATTACKS, detectors=detectors, metrics=RATED, seeds=[0, 1])
    result = run(asked)
    (rated,) = result.table.ratings
    assert (rated.attack, rated.seed, rated.of) == ("all", None, "models")
    assert (value(rated, "count"), value(rated, "positives"), value(rated, "named")) == (4, 2, 2)
    scores = {True: [], False: []}
    for verdict in result.table.detections:
        scores[verdict.attack == "none"].append(verdict.score)
    wins = [a > b for a in scores[False] for b in scores[True]]
    assert value(rated, "AUROC") == sum(wins) / 4

    text = result.table.to_text()
    assert "AUROC %" in text
    assert f"{100 * sum(wins) / 4:.2f} [50.00, ?]" in text
    told = json.loads((result.directory / "table.json").read_text())["ratings"]
    assert told[0]["values"]["AUROC"]["interval"] == [0.5, None]
    assert "How well the detectors did" in result.report.read_text()


def test_without_a_clean_model_models_are_not_rated(recipe, run, seen):
    result = run(recipe(attacks=ATTACKS[:1], detectors=[{"name": "weigher"}], metrics=RATED))
    assert result.table.ratings == ()


def test_without_a_detection_metric_nothing_is_rated(recipe, run, seen):
    assert run(recipe(detectors=INSPECTOR)).table.ratings == ()


def test_a_metric_that_fails_costs_its_row(recipe, run, seen):
    metrics = [{"name": "toy-metric"}, {"name": "toy-rating", "fault": "raise"}]
    result = run(recipe(attacks=ATTACKS[:1], detectors=INSPECTOR, metrics=metrics))
    assert result.failed
    assert {rating.error for rating in result.table.ratings} == {"unforeseen"}
    assert "failed: rating of inspector, toy-attack: unforeseen" in result.table.to_text()


def test_detection_metrics_change_no_other_key(recipe, seen):
    def keys(metrics):
        plan = make_plan(
            recipe(metrics=metrics), data_fingerprint=lambda _: "", file_fingerprint=lambda _: ""
        )
        return {step.key for step in plan.of_kind(StepKind.MEASURE)}

    assert keys(RATED) == keys(RATED[:1])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("one short", r"expected sample_scores of \(160,\) numbers"),
        ("no numbers", "sample_scores that are not numbers"),
        ("flags", "flagged_samples of"),
        ("no filter", "must be an InputFilter"),
        ("silent", "must say something"),
    ],
)
def test_what_is_wrong_with_a_result_is_told(recipe, run, seen, fault, message):
    detectors = [{"name": "inspector", "fault": fault}]
    (verdict,) = run(recipe(detectors=detectors)).table.detections
    assert verdict.error is not None
    assert re.search(message, verdict.error)
