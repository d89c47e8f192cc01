"""Components, clusters and silhouettes against answers known otherwise; a trained victim."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import silhouette_score

from backdoorkit import Need
from backdoorkit.api import DetectionTask, area_under_curve
from backdoorkit.testing import (
    PLANTED_CLASSES,
    PLANTED_SHAPE,
    PlantedNetwork,
    planted_context,
    planted_images,
)
from backdoorkit_activationclustering import ClusteringConfig
from backdoorkit_activationclustering._clustering import reduce, silhouette, two_means
from backdoorkit_activationclustering._detector import ActivationClustering


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def two_clouds(small=10, large=40, apart=8.0):
    points = torch.randn(small + large, 3, generator=generator()).double()
    points[:small, 1] += apart
    return points, torch.arange(small + large) < small


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
        method="activation-clustering",
        num_classes=PLANTED_CLASSES,
        image_shape=PLANTED_SHAPE,
        resources={Need.WEIGHTS: model.eval(), Need.TRAINING_DATA: data},
    )
    return ActivationClustering(ClusteringConfig(**options)).run(task, planted_context("it"))


# -- building blocks -------------------------------------------------------------------------------


def test_two_clouds_are_told_apart_and_the_smaller_is_named():
    points, truth = two_clouds()
    clusters = two_means(points, 5, generator())
    assert torch.equal(clusters.small, truth)
    assert clusters.share == 0.2
    torch.testing.assert_close(clusters.centres[0], points[truth].mean(dim=0))
    torch.testing.assert_close(clusters.centres[1], points[~truth].mean(dim=0))


def test_equal_points_are_one_cluster():
    clusters = two_means(torch.ones(6, 2).double(), 3, generator())
    assert clusters.share in (0.0, 1.0)
    assert silhouette(torch.ones(6, 2).double(), clusters.small) == 0


@pytest.mark.parametrize("apart", [0.0, 2.0, 8.0])
def test_silhouettes_are_those_of_scikit_learn(apart):
    points, truth = two_clouds(apart=apart)
    expected = silhouette_score(points.numpy(), truth.numpy())
    assert silhouette(points, truth) == pytest.approx(expected)


def test_one_alone_has_a_silhouette_of_zero():
    points = torch.tensor([[0.0], [1.0], [5.0]]).double()
    alone = torch.tensor([False, False, True])
    assert silhouette(points, alone) == pytest.approx(((5 - 1) / 5 + (4 - 1) / 4) / 3)


def test_principal_components_keep_distances_and_independent_ones_have_unit_variance():
    points, _ = two_clouds()
    principal = reduce(points, 3, "pca", generator())
    torch.testing.assert_close(torch.cdist(principal, principal), torch.cdist(points, points))
    independent = reduce(points, 2, "ica", generator())
    torch.testing.assert_close(independent.std(dim=0, correction=0), torch.ones(2).double())
    line = torch.arange(5.0)[:, None] * torch.ones(1, 4)
    assert reduce(line, 3, "ica", generator()).shape == (5, 1)  # there is no more in it


# -- outcome ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "reduction"), [("size", "ica"), ("size", "pca"), ("silhouette", "pca")]
)
def test_the_poisoned_class_and_its_poisoned_samples_are_found(rule, reduction):
    data, poisoned = poisoned_set()
    options = {"rule": rule, "reduction": reduction, "dimensions": 2, "silhouette_threshold": 0.6}
    found = detect(PlantedNetwork(), data, **options)
    assert (found.detected, found.target) == (True, 0)
    assert found.flagged_samples[poisoned].all()
    target = data.labels == 0
    assert torch.equal(found.flagged_samples[target], poisoned[target])
    scores = found.sample_scores[target]
    assert area_under_curve(scores[poisoned[target]], scores[~poisoned[target]]) == 1


def test_what_is_flagged_is_the_small_part_of_flagged_classes_alone():
    data, _ = poisoned_set()
    found = detect(PlantedNetwork(), data, size_threshold=0.45)
    labels = torch.unique(data.labels[found.flagged_samples]).tolist()
    assert sorted(found.details["flagged"]) == labels
    for label, facts in found.details["classes"].items():
        assert (facts["share"] < 0.45) == (int(label) in labels)
    assert found.details["flagged_samples"] == int(found.flagged_samples.sum())
    assert torch.equal(found.sample_scores > 2, found.flagged_samples)


def test_without_the_backdoor_the_class_is_split_less_clearly():
    data, poisoned = poisoned_set()
    clean = data.subset((~poisoned).nonzero().flatten())
    options = {"rule": "silhouette", "reduction": "pca", "silhouette_threshold": 0.6}
    before = detect(PlantedNetwork(), clean, **options)
    assert (before.detected, before.target) == (False, None)
    assert not before.flagged_samples.any()
    after = detect(PlantedNetwork(), data, **options)
    assert after.score > before.score + 0.2


def test_a_class_of_three_samples_is_left_out():
    data = planted_images(64)
    few = torch.cat([(data.labels == 0).nonzero()[:3, 0], (data.labels != 0).nonzero()[:, 0]])
    found = detect(PlantedNetwork(), data.subset(few))
    assert "0" not in found.details["classes"]
    assert found.sample_scores.shape == (59,)
    assert (found.sample_scores[:3] == -1).all()  # less suspicious than any other
