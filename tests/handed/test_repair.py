"""``backdoorkit repair``: a cleaner file under the given names, and what changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from backdoorkit.models.checkpoints import read_weights
from backdoorkit.testing.planted import PlantedNetwork, planted_success

GREY = ("--arch", "handed_networks:make")
OUT = ("--defense", "cut", "-o", "out.safetensors")


@pytest.fixture
def repaired(call, model, images):
    result = call("repair", model, "--data", images, *GREY, *OUT, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_repaired_file_fits_where_the_given_one_did(repaired, here):
    network = PlantedNetwork()
    network.load_state_dict(read_weights(here / "out.safetensors"))
    assert planted_success(network) == 0.0


def test_success_is_that_of_the_reversed_trigger(repaired):
    (trigger,) = repaired["reversed_triggers"]
    assert trigger == {"label": 0, "size": 4.0, "flagged": True, "before": 1.0, "after": 0.0}
    assert repaired["accuracy"] == {"before": 1.0, "after": 1.0}
    assert repaired["changed_predictions"] == 0.0
    assert repaired["judged_on"] == {"images": 40, "held_out": False}
    assert "not a proof" in repaired["note"]


def test_images_can_be_held_out_and_the_repair_judged_on_them(call, model, images):
    result = call("repair", model, "--data", images, *GREY, *OUT, "--hold-out", 0.2, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["judged_on"] == {"images": 8, "held_out": True}
    assert found["detectors"][0]["details"]["images"] == 32


def test_the_manifest_says_from_what_and_how(repaired, here, model):
    manifest = json.loads((here / "out.json").read_text())
    assert manifest["source"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    out = (here / "out.safetensors").read_bytes()
    assert manifest["weights"]["sha256"] == hashlib.sha256(out).hexdigest()
    assert manifest["defense"]["name"] == "cut"
    assert manifest["normalization"] == {"mean": [0], "std": [1], "stored_with_weights": False}


def test_the_report_has_before_and_after(repaired):
    report = Path(repaired["report"]).read_text(encoding="utf-8")
    assert "reversed trigger of class 0 (4.0 pixels) succeeds" in report
    assert "not a proof" in report
    assert "head.weight" in report


def test_without_images_nothing_is_measured_and_all_is_written(call, model, here):
    result = call("repair", model, *GREY, *OUT, "--size", 8, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["reversed_triggers"] == []
    assert found["accuracy"] == {"before": None, "after": None}
    assert torch.equal(read_weights(here / "out.safetensors")["head.weight"][:, -1], torch.zeros(8))


def test_files_are_never_replaced_unasked(call, refusal, model, images, here):
    (here / "out.json").write_text("{}")
    args = (model, *GREY, *OUT, "--size", 8)
    assert "out.json is there already" in refusal(call("repair", *args))
    assert (here / "out.json").read_text() == "{}"
    assert call("repair", *args, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--defense", "cut", "-o", "out.pth"), "must be called .safetensors"),
        (("--defense", "cut", "-o", "none/out.safetensors"), "there is no folder"),
        (("--defense", "cat", "-o", "out.safetensors"), "did you mean 'cut'?"),
    ],
)
def test_mistakes_end_with_two_and_one_line(call, refusal, model, args, message):
    assert message in refusal(call("repair", model, *GREY, *args, "--size", 8))
