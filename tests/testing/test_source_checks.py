"""Checks of metrics, data sets and architectures fail for those made to break them."""

from __future__ import annotations

import urllib.request

import pytest
import torch

from backdoorkit import Kind, Need
from backdoorkit.api import Architecture, Dataset, ImageSet, InputError, Metric, MetricValue
from backdoorkit.testing import CheckStatus, tiny_images
from backdoorkit.testing.tiny import TinyNetwork


def failed(outcomes):
    return [outcome.check for outcome in outcomes.values() if outcome.failed]


# -- metrics ---------------------------------------------------------------------------------------


class Accuracy(Metric):
    """A well-behaved metric."""

    def compute(self, evaluation):
        hits, count = int(evaluation.clean.correct.sum()), len(evaluation.clean)
        return {"ACC": MetricValue(value=hits / count, numerator=hits, denominator=count)}


class Percent(Accuracy):
    def compute(self, evaluation):
        return {"ACC": MetricValue(value=100 * super().compute(evaluation)["ACC"].value)}


class Disagrees(Accuracy):
    def compute(self, evaluation):
        return {"X": MetricValue(value=0.5, numerator=1, denominator=3)}


class Bare(Accuracy):
    def compute(self, evaluation):
        return {"X": 0.5}


class Empty(Accuracy):
    def compute(self, evaluation):
        return {}


class Infinite(Accuracy):
    def compute(self, evaluation):
        return {"X": MetricValue(value=float("inf"))}


class ByOrder(Accuracy):
    def compute(self, evaluation):
        half = evaluation.clean.correct[:7]
        return {"X": MetricValue(value=float(half.float().mean()))}


class WantsAnAttack(Accuracy):
    def compute(self, evaluation):
        return {"X": MetricValue(value=float(evaluation.triggered.hits.float().mean()))}


class Peeks(Accuracy):
    def compute(self, evaluation):
        known = evaluation.poison is not None
        return {"X": MetricValue(value=1.0 if known else 0.0)}


class Spoils(Accuracy):
    def compute(self, evaluation):
        evaluation.clean.logits.zero_()
        return {"X": MetricValue(value=0.0)}


@pytest.mark.parametrize(
    ("metric", "check"),
    [
        (Percent, "known models get their known values"),
        (Disagrees, "values are well formed"),
        (Bare, "values are well formed"),
        (Empty, "values are well formed"),
        (Infinite, "values are well formed"),
        (ByOrder, "order of samples does not matter"),
        (WantsAnAttack, "works without an attack"),
        (Peeks, "asks only for what it declares"),
        (Spoils, "leaves predictions and what is global alone"),
    ],
)
def test_a_metric_that_breaks_the_contract_fails_its_check(metric, check, outcomes):
    assert check in failed(outcomes(Kind.METRIC, metric))


def test_a_metric_that_keeps_the_contract_fails_none(outcomes):
    assert failed(outcomes(Kind.METRIC, Accuracy)) == []
    assert failed(outcomes(Kind.METRIC, Peeks, needs={Need.POISON_RECORD})) == []


# -- data sets -------------------------------------------------------------------------------------


class Images(Dataset):
    """A well-behaved data set."""

    def load(self, split, cache):
        return tiny_images(128, seed=1 if split == "train" else 2)


class Leaks(Images):
    def load(self, split, cache):
        return tiny_images(128, seed=1)


class Disagree(Images):
    def load(self, split, cache):
        shape = (3, 16, 16) if split == "train" else (3, 8, 8)
        return tiny_images(128, seed=len(split), image_shape=shape)


class Shuffled(Images):
    def load(self, split, cache):
        data = super().load(split, cache)
        return data.subset(torch.randperm(len(data)))


class Black(Images):
    def load(self, split, cache):
        images = torch.zeros(64, 3, 16, 16, dtype=torch.uint8)
        return ImageSet.from_tensors(images, torch.arange(64) % 4)


class Lists(Images):
    def load(self, split, cache):
        return [1, 2]


@pytest.mark.parametrize(
    ("dataset", "check"),
    [
        (Leaks, "splits share no image"),
        (Disagree, "splits agree"),
        (Shuffled, "loading twice gives the same"),
        (Black, "images are bytes"),
        (Lists, "loads both splits"),
    ],
)
def test_a_data_set_that_breaks_the_contract_fails_its_check(dataset, check, outcomes):
    assert check in failed(outcomes(Kind.DATASET, dataset))


def test_a_data_set_that_keeps_the_contract_fails_none(outcomes):
    assert failed(outcomes(Kind.DATASET, Images)) == []


class Downloads(Images):
    def load(self, split, cache):
        urllib.request.urlopen("http://images.example/", timeout=5)


class Absent(Images):
    def load(self, split, cache):
        raise InputError("expected the images below root; set download to fetch them")


@pytest.mark.parametrize("dataset", [Downloads, Absent])
def test_a_data_set_that_is_not_at_hand_is_skipped(dataset, outcomes):
    found = outcomes(Kind.DATASET, dataset)
    assert failed(found) == []
    assert found["loads both splits"].status is CheckStatus.SKIPPED


# -- architectures ---------------------------------------------------------------------------------


class Tiny(Architecture):
    """A well-behaved architecture."""

    def build(self, image_shape, num_classes):
        return TinyNetwork(image_shape[0], num_classes)


class WrongHead(Tiny):
    def build(self, image_shape, num_classes):
        return TinyNetwork(image_shape[0], 10)


class Unused(Tiny):
    def build(self, image_shape, num_classes):
        network = super().build(image_shape, num_classes)
        network.spare = torch.nn.Linear(2, 2)
        return network


class Constant(Tiny):
    def build(self, image_shape, num_classes):
        network = super().build(image_shape, num_classes)
        generator = torch.Generator().manual_seed(0)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
        return network


class Mixing(TinyNetwork):
    def forward(self, images):
        return super().forward(images - images.mean(0))


class Mixes(Tiny):
    def build(self, image_shape, num_classes):
        return Mixing(image_shape[0], num_classes)


@pytest.mark.parametrize(
    ("architecture", "check"),
    [
        (WrongHead, "builds a classifier"),
        (Unused, "every parameter can be trained"),
        (Constant, "initial weights follow the seed"),
        (Mixes, "images of a batch do not mix"),
    ],
)
def test_an_architecture_that_breaks_the_contract_fails_its_check(architecture, check, outcomes):
    assert check in failed(outcomes(Kind.MODEL, architecture))


def test_an_architecture_that_keeps_the_contract_fails_none(outcomes):
    assert failed(outcomes(Kind.MODEL, Tiny)) == []
