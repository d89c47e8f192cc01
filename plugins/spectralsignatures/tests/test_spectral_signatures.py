"""Projections against the singular value decomposition; poisoned samples of a trained victim."""

from __future__ import annotations

import math

import pytest
import torch

from backdoorkit import Need
from backdoorkit.api import DetectionTask, area_under_curve
from backdoorkit.testing import (
    PLANTED_CLASSES,
    PLANTED_SHAPE,
    PlantedNetwork,
    planted_context,
    planted_images,
)
from backdoorkit_spectralsignatures import SpectralConfig
from backdoorkit_spectralsignatures._detector import SpectralSignatures, projections


def poisoned_set():
    """Images of the planted network's task, a fifth of class 0 with its trigger; and which."""
    data = planted_images(320)
    chosen = (data.labels != 0).nonzero().flatten()[::28]
    images = data.images[chosen].clone()
    images[..., -2:, -2:] = 255
    return data.replaced(chosen, images, torch.zeros_like(chosen)), torch.isin(
        torch.arange(320), chosen
    )


def detect(model, data, **options):
    task = DetectionTask(
        method="spectral-signatures",
        num_classes=PLANTED_CLASSES,
        image_shape=PLANTED_SHAPE,
        resources={Need.WEIGHTS: model.eval(), Need.TRAINING_DATA: data},
    )
    return SpectralSignatures(SpectralConfig(**options)).run(task, planted_context("it"))


def test_projections_are_those_of_the_singular_value_decomposition():
    features = torch.randn(30, 7, generator=torch.Generator().manual_seed(0))
    found, values = projections(features)
    centred = (features - features.mean(dim=0)).double()
    _, singular, right = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(values, singular)
    torch.testing.assert_close(found, (centred @ right[0]).square())


def test_a_line_is_projected_onto_itself():
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])  # 0, 5 and 10 along (.6, .8)
    squares, values = projections(features)
    assert squares.tolist() == pytest.approx([25.0, 0.0, 25.0])
    assert values.tolist() == pytest.approx([math.sqrt(50), 0.0], abs=1e-6)


def test_fewer_samples_than_features_and_a_single_one():
    assert projections(torch.ones(1, 5))[0].tolist() == [0.0]
    assert len(projections(torch.eye(3, 9))[0]) == 3


def test_poisoned_samples_are_farther_out_than_all_others():
    data, poisoned = poisoned_set()
    found = detect(PlantedNetwork(), data)
    assert area_under_curve(found.sample_scores[poisoned], found.sample_scores[~poisoned]) == 1
    assert found.details["singular_values"]["0"] > 2 * found.details["singular_values"]["1"]
    assert found.score is None  # nothing is said of the model


def test_a_share_of_each_class_is_flagged_and_the_poison_is_in_it():
    data, poisoned = poisoned_set()
    found = detect(PlantedNetwork(), data, poison_share=0.2)
    for label in range(PLANTED_CLASSES):
        members = data.labels == label
        count = math.ceil(0.3 * int(members.sum()))
        assert int(found.flagged_samples[members].sum()) == count
        scores, flags = found.sample_scores[members], found.flagged_samples[members]
        assert scores[flags].min() >= scores[~flags].max()
    assert found.flagged_samples[poisoned].all()
    assert found.details["flagged"] == int(found.flagged_samples.sum())


def test_never_more_than_all_are_flagged():
    data, _ = poisoned_set()
    assert detect(PlantedNetwork(), data, poison_share=0.9).flagged_samples.all()
