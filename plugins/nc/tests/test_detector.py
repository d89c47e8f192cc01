"""The detector on a network with a backdoor put in by hand, and on its clean twin."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from backdoorkit import Need
from backdoorkit.api import DetectionTask, StructureError, find_structure
from backdoorkit.hooks.options import structure as configure
from backdoorkit.testing import PlantedNetwork, tiny_context, tiny_victim
from backdoorkit_nc import DetectionConfig, backdoorkit_detectors
from backdoorkit_nc._detector import NeuralCleanse
from backdoorkit_nc.filters import screen, stored_filters


def detect(planted, model, **options):
    task = DetectionTask(
        method="nc",
        num_classes=planted.classes,
        image_shape=planted.shape,
        resources={Need.WEIGHTS: model.eval(), Need.CLEAN_SAMPLES: planted.images(160)},
    )
    options = {**planted.quick, "threshold": 4.0, **options}
    return NeuralCleanse(DetectionConfig(**options)).run(task, planted.context())


@pytest.fixture(scope="module")
def result(planted):
    return detect(planted, planted.model())


def test_the_planted_backdoor_is_found_with_its_target(result):
    assert result.detected
    assert result.target == 0
    assert result.details["flagged"] == [0]
    assert result.score == result.details["anomaly_index"] > 10
    assert result.details["p_value"] < 0.01


def test_masks_patterns_and_norms_are_kept(planted, result):
    tensors = result.tensors
    assert tensors["masks"].shape == (8, 1, 8, 8)
    assert tensors["patterns"].shape == (8, 1, 8, 8)
    assert tensors["norms"].tolist() == result.details["norms"]
    torch.testing.assert_close(tensors["masks"].double().sum((1, 2, 3)), tensors["norms"])
    assert float(tensors["anomaly_indices"].max()) == result.score


def test_the_reversed_trigger_works_as_stored(planted, result):
    mask, pattern = result.tensors["masks"][0], result.tensors["patterns"][0]
    images = planted.images(160).images.float() / 255
    with torch.no_grad():
        predicted = planted.model()(images * (1 - mask) + pattern * mask).argmax(dim=1)
    success = float((predicted == 0).float().mean())
    assert success == pytest.approx(result.details["reversed_success"][0])
    assert success > 0.9


def test_the_filter_of_the_flagged_class_can_be_used_from_its_stored_tensors(
    planted, result, tmp_path
):
    save_file(result.tensors, tmp_path / "tensors.safetensors")
    filters = stored_filters(load_file(tmp_path / "tensors.safetensors"))
    assert list(filters) == [0]
    assert filters[0].units.tolist() == [planted.classes]
    model, fresh = planted.model().eval(), planted.images(400, seed=7)
    images = fresh.images.float() / 255
    classes, rejected = screen(model, images, filters)
    assert torch.equal(classes, fresh.labels)
    assert float(rejected.float().mean()) == pytest.approx(0.05, abs=0.05)
    images[..., -2:, -2:] = 1
    classes, rejected = screen(model, images, filters)
    assert not classes.any()  # still told what the model says
    assert rejected.all()
    assert result.details["filter_reversed_trigger_rejected"] == {"0": 1.0}


def test_the_framework_rates_the_same_filter_that_is_stored(planted, result):
    images = planted.images(40).images.float() / 255
    images[::2, ..., -2:, -2:] = 1
    watch = result.input_filter
    _, rejected = screen(planted.model().eval(), images, stored_filters(result.tensors))
    assert torch.equal(watch.score(images) > watch.threshold, rejected)
    assert rejected[::2].all()


def test_reversed_triggers_are_drawn_the_smallest_first(result):
    (figure,) = result.figures.values()
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    norms = torch.tensor(result.details["norms"])
    assert titles == [f"class {k}: {float(norms[k]):.1f}" for k in norms.argsort().tolist()]
    assert titles[0].startswith("class 0: ")
    mask = figure.axes[0].images[0].get_array()
    torch.testing.assert_close(torch.tensor(mask.data), result.tensors["masks"][0, 0])
    assert set(result.captions) == set(result.figures)


def test_a_filter_is_stored_for_every_flagged_class(planted):
    loose = detect(planted, planted.model(), threshold=0.0, inversion_steps=20)
    assert len(loose.details["flagged"]) > 1
    filters = stored_filters(loose.tensors)
    assert list(filters) == sorted(loose.details["flagged"])
    images = planted.images(40).images.float() / 255
    _, rejected = screen(planted.model().eval(), images, filters)
    alone = [screen(planted.model().eval(), images, {k: f})[1] for k, f in filters.items()]
    assert torch.equal(rejected, torch.stack(alone).any(dim=0))


def test_the_clean_twin_is_not_flagged(planted):
    result = detect(planted, planted.model(vote=0.0))
    assert result.detected is False
    assert result.target is None
    assert result.details["flagged"] == []
    assert stored_filters(result.tensors) == {}
    assert result.input_filter is None
    _, rejected = screen(planted.model().eval(), torch.rand(5, *planted.shape), {})
    assert not rejected.any()


class TwoHeads(PlantedNetwork):
    """Two layers make the logits together, so neither is the last one."""

    def __init__(self):
        super().__init__()
        self.other = nn.Linear(64, 8)
        nn.init.zeros_(self.other.weight)
        nn.init.zeros_(self.other.bias)

    def forward(self, images):
        return super().forward(images) + self.other(images.flatten(1))


def test_a_model_without_one_last_layer_has_a_verdict_and_no_filter_and_is_told_so(planted):
    found = detect(planted, TwoHeads(), threshold=0.0, inversion_steps=10)
    assert found.detected
    assert found.details["filter"].startswith("none")
    assert stored_filters(found.tensors) == {}


def test_the_family_wise_threshold_is_reported_beside_the_fixed_one(planted, result):
    assert result.threshold == 4.0
    calibrated = detect(planted, planted.model(), threshold_rule="family-wise")
    assert calibrated.threshold == result.details["family_wise_threshold"]
    assert calibrated.detected


def classifier(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def test_two_classes_are_refused_and_three_are_not():
    detector = NeuralCleanse(DetectionConfig())
    with pytest.raises(StructureError, match="at least 3, but Sequential has 2"):
        detector.check(find_structure(classifier(2), (1, 8, 8)))
    detector.check(find_structure(classifier(3), (1, 8, 8)))


def test_few_classes_are_told_to_have_low_power(caplog, planted, result):
    assert result.details["low_power"] is False
    victim = tiny_victim()
    task = DetectionTask(
        method="nc",
        num_classes=4,
        image_shape=(3, 16, 16),
        resources={Need.WEIGHTS: victim.model, Need.CLEAN_SAMPLES: victim.reserve},
    )
    options = DetectionConfig(inversion_steps=1, inversion_batches=1)
    with caplog.at_level(logging.WARNING):
        found = NeuralCleanse(options).run(task, tiny_context("nc"))
    assert found.details["low_power"] is True
    assert "with 4 classes an outlier hardly stands out" in caplog.text


def test_presets_are_valid_and_the_released_code_is_the_default():
    (info,) = backdoorkit_detectors()
    configs = {name: configure(info.config, preset) for name, preset in info.presets.items()}
    assert configs["official"] == configs["paper"] == DetectionConfig()
    assert configs["backdoorbench"].penalty_start == "at-once"
    assert configs["backdoorbench"].inversion_batches == 0
