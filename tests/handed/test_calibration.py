"""The null distribution of a score: ranks, thresholds, files, and what does not fit together."""

from __future__ import annotations

import json

import attrs
import pytest

from backdoorkit.errors import InputError
from backdoorkit.handed.calibration import (
    Calibration,
    find_calibration,
    read_calibration,
    write_calibration,
)


def calibration(scores):
    return Calibration(
        detector={"name": "nc", "version": "1", "config": {"steps": 5}},
        architecture={"name": "small-cnn", "config": {"width": 8}},
        num_classes=10,
        image_shape=(1, 8, 8),
        scores=tuple(scores),
        reserve=100,
    )


NINETEEN = calibration(map(float, range(1, 20)))


@pytest.mark.parametrize(("score", "p"), [(25, 1 / 20), (19, 2 / 20), (18.5, 2 / 20), (0, 1.0)])
def test_p_is_a_rank_that_is_never_zero(score, p):
    assert NINETEEN.p_value(score) == p


@pytest.mark.parametrize(("rate", "threshold"), [(0.05, 19), (0.1, 18), (0.11, 18), (0.5, 10)])
def test_above_the_threshold_p_is_at_most_the_rate(rate, threshold):
    assert NINETEEN.threshold(rate) == threshold
    assert NINETEEN.reached_rate(rate) <= rate
    assert NINETEEN.p_value(threshold + 0.5) <= rate < NINETEEN.p_value(threshold)


def test_too_few_models_say_which_rate_they_reach():
    few = calibration([1.0, 3.0, 2.0])
    assert few.threshold(0.05) == 3.0
    assert few.reached_rate(0.05) == 0.25


def test_it_is_found_again_by_detector_and_architecture_only(tmp_path):
    path = write_calibration(NINETEEN, tmp_path)
    assert find_calibration(tmp_path, NINETEEN.identity) == (path, NINETEEN)
    other = attrs.evolve(NINETEEN, detector={**NINETEEN.detector, "config": {"steps": 6}})
    assert find_calibration(tmp_path, other.identity) is None


def test_a_copy_goes_where_it_is_wanted(tmp_path):
    assert write_calibration(NINETEEN, tmp_path, tmp_path / "own.json") == tmp_path / "own.json"
    assert read_calibration(tmp_path / "own.json") == NINETEEN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is no calibration"),
        ({"scores": []}, "has no scores"),
        ({"scores": ["high"]}, "damaged"),
        ({"more": 1}, "damaged"),
    ],
)
def test_damaged_files_are_refused(tmp_path, change, message):
    path = write_calibration(NINETEEN, tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        read_calibration(path)


# -- the command -----------------------------------------------------------------------------------


GREY = ("--arch", "handed_networks:make")


@pytest.fixture
def calibrated(call, model, clean_model, images):
    """One clean model scores 0.125, the other (the victim in a clean model's place) 1."""
    files = (clean_model, model)
    result = call("calibrate", *files, "--data", images, *GREY, "-o", "null.json", "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_models_from_files_are_scored_and_scans_use_it(call, calibrated, model, images):
    assert calibrated["scores"] == [0.125, 1.0]
    assert calibrated["reserve"] == 40
    result = call("scan", model, "--data", images, *GREY, "--json")
    (verdict,) = json.loads(result.stdout)["detectors"]
    assert verdict["p_value"] == pytest.approx(2 / 3)
    assert verdict["threshold"] == 1.0
    assert verdict["detected"] is False
    assert "rank among 2 clean models" in verdict["p_value_source"]
    assert "too few for a false alarm rate of 0.05" in result.stderr


def test_a_calibration_of_other_options_is_refused(call, refusal, calibrated, model, images):
    changed = ("--detector", "nc", "--set", "detectors[0].threshold=0.9")
    args = ("--data", images, *GREY, *changed)
    found = json.loads(call("scan", model, *args, "--json").stdout)
    assert found["detectors"][0]["threshold"] == 0.9  # the store's does not fit
    line = refusal(call("scan", model, *args, "--calibration", "null.json"))
    assert "threshold = 0.5, not 0.9" in line


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("nill.json", None, "nill.json cannot be read"),
        ("null.json", "{}", "null.json is no calibration"),
        ("null.json", '"greedy"', "null.json is of detector 'greedy', and 'nc' is asked for"),
    ],
)
def test_an_unusable_calibration_is_refused_before_the_search(
    call, refusal, calibrated, model, images, here, name, text, message
):
    place = here / name
    if text == "{}":
        place.write_text(text)
    elif text is not None:
        place.write_text(place.read_text().replace('"nc"', text))
    args = ("--data", images, *GREY, "--detector", "nc", "--store", "other-store")
    assert message in refusal(call("scan", model, *args, "--calibration", name))
    assert not list((here / "other-store").glob("runs/*"))


def test_models_are_trained_where_none_are_given(call, here):
    recipe = here / "recipe.toml"
    recipe.write_text(
        "[data]\nname = 'digits'\ntrain_size = 64\n[model]\nname = 'small-cnn'\nwidth = 2\n"
        "stages = 1\n[train]\nepochs = 1\n[[attacks]]\nname = 'none'\n"
        "[[detectors]]\nname = 'bias'\n"
    )
    result = call("calibrate", "-f", recipe, "--count", 2, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert len(set(found["scores"])) == 2
    assert found["architecture"]["config"] == {"width": 2, "stages": 1}
    assert found["provenance"]["recipe"]["seeds"] == [0, 1]


def test_one_model_is_no_distribution(call, refusal, model, images):
    assert "one clean model" in refusal(call("calibrate", model, "--data", images, *GREY))
    assert "give --data" in refusal(call("calibrate", model, *GREY))
