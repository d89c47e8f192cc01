"""Entropies and boundaries by hand; triggered inputs of a trained backdoor."""

from __future__ import annotations

import math

import pytest
import torch

from backdoorkit import Need
from backdoorkit.api import DetectionTask, InputError, area_under_curve
from backdoorkit.testing import (
    PLANTED_CLASSES,
    PLANTED_SHAPE,
    PlantedNetwork,
    planted_context,
    planted_images,
    tiny_context,
    tiny_victim,
)
from backdoorkit_strip import StripConfig
from backdoorkit_strip._detector import Strip, SuperpositionFilter, entropy, fit_boundary


def detect(clean=None, **options):
    victim = tiny_victim()

    def query(images):
        with torch.inference_mode():
            return victim.model(images)

    task = DetectionTask(
        method="strip",
        num_classes=4,
        image_shape=(3, 16, 16),
        resources={
            Need.QUERIES: query,
            Need.CLEAN_SAMPLES: victim.reserve if clean is None else clean,
        },
    )
    return Strip(StripConfig(**options)).run(task, tiny_context("strip"))


def test_entropy_is_in_bits():
    certain = torch.tensor([1000.0, 0.0, 0.0, 0.0])
    even = torch.zeros(4)
    half = torch.tensor([0.0, 0.0, -1000.0, -1000.0])
    found = entropy(torch.stack([certain, even, half]))
    torch.testing.assert_close(found, torch.tensor([0.0, 2.0, 1.0]).double(), atol=1e-9, rtol=0)


def test_boundaries_are_quantiles_of_clean_entropies():
    entropies = torch.arange(101).double()
    empirical = StripConfig(boundary="empirical", false_rejections=0.05)
    assert fit_boundary(entropies, empirical) == pytest.approx(5.0)
    # A normal distribution of mean 50 and standard deviation 29.15 has 1 % below this.
    assert fit_boundary(entropies, StripConfig()) == pytest.approx(50 - 2.3263479 * 29.1547595)


def test_superpositions_are_cut_off_at_white():
    images, overlay = torch.tensor([0.2, 0.9]), torch.tensor([0.5, 0.5])
    summed = SuperpositionFilter(lambda x: x, overlay, StripConfig())
    torch.testing.assert_close(summed.superimpose(images, overlay), torch.tensor([0.7, 1.0]))
    config = StripConfig(input_weight=0.5, overlay_weight=0.5)
    mean = SuperpositionFilter(lambda x: x, overlay, config)
    torch.testing.assert_close(mean.superimpose(images, overlay), torch.tensor([0.35, 0.7]))


def test_a_score_is_minus_the_mean_entropy_over_the_overlays():
    # Two classes; the overlay of ones leaves the model in doubt, that of zeros does not.
    def query(images):
        bright = images.mean(dim=(1, 2, 3)) > 0.5
        return torch.stack([torch.where(bright, 0.0, 1000.0), torch.zeros(len(images))], dim=1)

    overlays = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
    for images_at_once in (0, 1):
        config = StripConfig(images_at_once=images_at_once)
        watch = SuperpositionFilter(query, overlays, config, boundary=0.4)
        scores = watch.score(torch.zeros(3, 1, 2, 2))
        assert scores.tolist() == pytest.approx([-0.5] * 3)
        assert watch.threshold == -0.4


def planted_scores(vote):
    """Scores of clean and of triggered images of other classes, and the threshold."""
    model = PlantedNetwork(vote=vote).eval()
    task = DetectionTask(
        method="strip",
        num_classes=PLANTED_CLASSES,
        image_shape=PLANTED_SHAPE,
        resources={
            Need.QUERIES: lambda images: model(images).detach(),
            Need.CLEAN_SAMPLES: planted_images(80),
        },
    )
    found = Strip(StripConfig(overlays=16)).run(task, planted_context("strip"))
    test = planted_images(80, seed=1)
    images = test.images.float() / 255
    triggered = images[test.labels != 0].clone()
    triggered[..., -2:, -2:] = 1
    watch = found.input_filter
    assert (found.score, found.detected) == (None, None)  # nothing is said of the model
    return watch.score(images), watch.score(triggered), watch.threshold


def test_triggered_inputs_keep_their_class_whatever_is_laid_over_them():
    clean, triggered, threshold = planted_scores(vote=30.0)
    assert area_under_curve(triggered, clean) == 1
    assert (triggered > threshold).all()
    assert float((clean > threshold).double().mean()) <= 0.1


def test_without_the_backdoor_the_trigger_changes_nothing():
    clean, triggered, _ = planted_scores(vote=0.0)
    assert area_under_curve(triggered, clean) < 0.7


def test_overlays_are_not_fitted_on():
    found = detect(overlays=1000)
    assert found.details["overlays"] == found.details["fitted_on"] == 64
    again = detect(overlays=8)
    assert (again.details["overlays"], again.details["fitted_on"]) == (8, 120)
    assert len(again.tensors["entropies"]) == 120
    assert 0 <= again.details["rejected_of_reserve"] <= 0.1
    assert math.isfinite(again.input_filter.threshold)


def test_a_reserve_of_three_is_refused():
    with pytest.raises(InputError, match="at least 4"):
        detect(tiny_victim().reserve.subset(torch.arange(3)))
