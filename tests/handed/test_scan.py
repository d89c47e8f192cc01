"""``backdoorkit scan``: one verdict on a model file, and one line for every mistake."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from click.testing import CliRunner

from backdoorkit.cli import cli
from backdoorkit.models._small import SmallCNNArchitecture
from backdoorkit.models.catalog import SmallCNNConfig
from backdoorkit.testing.planted import planted_images

GREY = ("--arch", "handed_networks:make")


def scan(call, *args):
    result = call("scan", *args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_backdoor_is_found_with_its_target(call, model, images, here):
    result = call("scan", model, "--data", images, *GREY, "--report", "found.html")
    assert result.exit_code == 0, result.output
    assert "verdict" in result.stdout.splitlines()[-1]
    assert result.stdout.splitlines()[-1].endswith("BACKDOORED, target label 0")
    report = (here / "found.html").read_text()
    assert "Backdoored, target label 0" in report
    assert report.count("reversed trigger of class") == 8
    assert "class 0: 4.0 pixels, flagged" in report


def test_a_clean_model_is_not_flagged(call, clean_model, images):
    found = scan(call, clean_model, "--data", images, *GREY)
    assert (found["verdict"], found["target"]) == ("not flagged", None)
    assert found["detectors"][0]["score"] == 0.125  # one class of eight is the target itself


def test_the_exit_code_tells_only_where_it_was_asked_to(call, model, clean_model, images):
    wanted = ("--data", images, *GREY, "--fail-on-detect")
    assert call("scan", model, *wanted).exit_code == 4
    assert call("scan", clean_model, *wanted).exit_code == 0


@pytest.mark.parametrize(
    ("p", "verdict", "code"), [(0.04, "backdoored", 4), (0.2, "suspicious", 0)]
)
def test_what_theory_finds_common_is_suspicious_only(call, model, images, p, verdict, code):
    args = (*GREY, "--set", f"detectors[0].p_value={p}", "--fail-on-detect", "--json")
    result = call("scan", model, "--data", images, *args)
    assert result.exit_code == code, result.output
    found = json.loads(result.stdout)
    assert (found["verdict"], found["target"]) == (verdict, 0)
    assert ("20 % of clean models" in result.stderr) == (verdict == "suspicious")


def test_all_images_are_the_defender_s(call, model, images):
    found = scan(call, model, "--data", images, *GREY)
    assert found["images"]["count"] == found["detectors"][0]["details"]["images"] == 40
    found = scan(call, model, "--data", images, *GREY, "--images", 16)
    assert found["images"]["count"] == found["detectors"][0]["details"]["images"] == 16


def test_architecture_and_classes_are_told_from_the_weights(call, here):
    network = SmallCNNArchitecture(SmallCNNConfig(width=3, stages=2)).build((1, 8, 8), 8)
    torch.save(network.state_dict(), here / "small.pt")
    found = scan(call, "small.pt", "--size", 8, "--detector", "bias", "--set", "model.width=3")
    assert found["model"]["architecture"] == {"name": "small-cnn", "width": 3, "stages": 2}
    assert found["model"]["told_from_weights"]
    assert found["model"]["num_classes"] == 8


def test_without_images_only_detectors_run_that_need_none(call, model):
    found = scan(call, model, *GREY, "--size", 8)
    assert [verdict["detector"] for verdict in found["detectors"]] == ["bias"]
    assert found["verdict"] == "backdoored"  # 30 votes
    assert found["images"]["count"] == 0
    assert "nothing tells how the model normalises" in found["warnings"][0]


def test_the_normalisation_that_suits_the_images_is_found_and_said(call, model, images):
    found = scan(call, model, "--data", images, *GREY)
    assert found["model"]["normalization"] == "none"
    assert found["images"]["accuracy_by_normalization"]["none"] == 1.0
    assert set(found["images"]["accuracy_by_normalization"]) == {"none", "data"}
    given = scan(call, model, "--data", images, *GREY, "--normalization", "0/1")
    assert given["model"]["normalization"] == {"mean": [0.0], "std": [1.0]}
    assert given["images"]["accuracy"] == 1.0


def test_wrong_labels_make_the_verdict_doubtful(call, model, here, write_images):
    wrong = planted_images(40)
    for number in range(8):
        (here / "wrong" / str((number + 1) % 8)).mkdir(parents=True)
    folder = write_images(here / "images", wrong)
    for number in range(8):
        for path in (folder / str(number)).iterdir():
            shutil.copy(path, here / "wrong" / str((number + 1) % 8))
    result = call("scan", model, "--data", here / "wrong", *GREY)
    assert "chance is 12.5 %" in result.stderr
    assert "(doubtful: see the warning)" in result.stdout


def test_a_model_that_recognises_few_images_makes_the_verdict_doubtful(
    call, model, here, write_images
):
    folder = write_images(here / "images", planted_images(40))
    for number in range(8):
        for path in sorted((folder / str(number)).iterdir())[:3]:
            path.rename(folder / str((number + 1) % 8) / f"moved-{path.name}")
    result = call("scan", model, "--data", folder, *GREY)
    assert "recognises only 40.0 % of the images" in result.stderr
    assert "(these have 1 x 8 x 8; --size gives another)" in result.stderr
    assert "(doubtful: see the warning)" in result.stdout


def test_pictures_without_labels_get_the_model_s_own(call, model, here, write_images):
    folder = write_images(here / "flat", planted_images(40), flat=True)
    found = scan(call, model, "--data", folder, *GREY)
    assert (found["verdict"], found["target"]) == ("backdoored", 0)
    assert not found["images"]["labelled"]
    assert found["images"]["accuracy"] is None
    assert found["model"]["normalization"] == "none"
    assert "no labels" in found["warnings"][0]


def test_a_second_scan_finds_everything_in_the_store(call, model, images, monkeypatch):
    first = scan(call, model, "--data", images, *GREY)
    monkeypatch.setattr("handed_methods.Corner.run", None)
    assert scan(call, model, "--data", images, *GREY) == first


def test_a_detector_that_fails_is_one_line(call, model, images):
    result = call("scan", model, "--data", images, *GREY, "--set", "detectors[0].fault=broken")
    assert result.exit_code in (1, 2)
    named = ("--detector", "nc", "--set", "detectors[0].fault=broken")
    result = call("scan", model, "--data", images, *GREY, *named)
    assert result.exit_code == 1
    assert "Error: nc failed: RuntimeError('broken')" in result.stderr


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "of no architecture known here"),
        (("--arch", "small-cm"), "'small-cnn'"),
        (("--arch", "no_such_module:net"), "cannot import no_such_module"),
        (("--arch", "handed_networks:small"), "does not fit the network"),
        ((*GREY, "--classes", "10"), "has 8 classes, not 10"),
        ((*GREY, "--labels", "none.csv"), "none.csv cannot be read"),
        ((*GREY, "--images", "5"), "5 images are too few for 8 classes"),
        ((*GREY, "--images", "60"), "there are 40"),
        ((*GREY, "--detector", "greedy"), "greedy needs training-data"),
        ((*GREY, "--detector", "ncc"), "did you mean 'nc'?"),
        ((*GREY, "--normalization", "imagnet"), "--normalization: must be none"),
        ((*GREY, "--normalization", "imagenet"), "is for 3 channels"),
        ((*GREY, "--calibration", "none.json"), "none.json cannot be read"),
        ((*GREY, "--set", "detectors[0].treshold=1"), "did you mean 'threshold'?"),
    ],
)
def test_mistakes_end_with_two_and_one_line(call, refusal, model, images, args, message):
    named = () if "--detector" in args else ("--detector", "nc")
    assert message in refusal(call("scan", model, "--data", images, *args, *named))


def test_no_images_and_no_size_is_a_mistake(call, refusal, model):
    assert "give --size" in refusal(call("scan", model, *GREY))
    named = ("--detector", "nc", "--size", 8)
    assert "nc needs clean images" in refusal(call("scan", model, *GREY, *named))


def test_other_images_than_the_model_s_are_refused(call, refusal, model, images, here):
    assert "digits" in refusal(call("scan", model, "--data", "digit", *GREY))
    assert "have 10 classes, and the model has 8" in refusal(
        call("scan", model, "--data", "digits", *GREY)
    )
    assert "fails on images" in refusal(call("scan", model, "--data", images, *GREY, "--size", 4))
    (here / "empty").mkdir()
    assert "holds no pictures" in refusal(call("scan", model, "--data", here / "empty", *GREY))
    assert "is a file" in refusal(call("scan", model, "--data", model, *GREY))
    shutil.rmtree(images / "3")
    (images / "3").mkdir()
    (images / "3" / "cut.png").write_bytes((images / "2" / "2.png").read_bytes()[:40])
    assert "cut.png" in refusal(call("scan", model, "--data", images, *GREY))


def test_grey_pictures_for_a_colour_model_are_refused(call, refusal, images, here):
    network = SmallCNNArchitecture(SmallCNNConfig(width=2, stages=1)).build((3, 8, 8), 8)
    torch.save(network.state_dict(), here / "colour.pt")
    assert "are grey" in refusal(call("scan", "colour.pt", "--data", images))
    assert call("scan", "colour.pt", "--data", images, "--convert").exit_code in (0, 1)


def test_files_that_are_no_weights_are_refused(call, refusal, model, images, here):
    assert "there is no file" in refusal(call("scan", here / "none.pt", "--data", images))
    cut = here / "cut.pth"
    cut.write_bytes(model.read_bytes()[:900])
    assert "copy or download it again" in refusal(call("scan", cut, "--data", images))
    whole = here / "whole.pth"
    torch.save(torch.nn.Linear(2, 2), whole)
    assert "was not read" in refusal(call("scan", whole, "--data", images))


def test_help_says_what_is_wanted():
    result = CliRunner().invoke(cli, ["scan", "--help"])
    assert result.exit_code == 0
    assert "--fail-on-detect" in result.stdout
