"""Tiny data and models for the training loop, and one way to call it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from backdoorkit import TrainOptions
from backdoorkit.data.images import ImageSet
from backdoorkit.testing import MemorySlot
from backdoorkit.training import TrainingSummary, fit

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def data() -> ImageSet:
    """37 images in three classes that differ in brightness."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(37) % 3
    noise = torch.randint(0, 60, (37, 2, 6, 6), generator=generator)
    images = (noise + 80 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    return ImageSet.from_tensors(images, labels)


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)
        self.drop = nn.Dropout(0.0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.norm(self.convolution(images))).mean(dim=(2, 3))
        return self.head(self.drop(features))


@pytest.fixture(scope="session")
def _initial() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return _Model()


@pytest.fixture
def model(_initial) -> nn.Module:
    """Convolution, batch norm, dropout (off) and a head; the same weights for every test."""
    return copy.deepcopy(_initial)


@pytest.fixture
def train(data):
    """Call ``fit`` with the usual arguments: ``train(model, hooks=..., epochs=...)``."""

    def call(model, *, images=data, seed=0, hooks=None, progress=None, checkpoint=None, **options):
        chosen = TrainOptions(
            **{"epochs": 2, "batch_size": 8, "learning_rate": 0.05, "precision": "float32"}
            | options
        )
        summary = fit(
            model,
            images,
            chosen,
            device=CPU,
            shuffle_generator=torch.Generator().manual_seed(seed),
            augmentation_generator=torch.Generator().manual_seed(seed + 1),
            hooks=hooks,
            progress=progress,
            checkpoint=checkpoint,
        )
        assert isinstance(summary, TrainingSummary)
        return summary

    return call


class Slot(MemorySlot):
    """As a file wants them: every tensor contiguous."""

    def save(self, tensors, facts):
        assert all(tensor.is_contiguous() for tensor in tensors.values())
        super().save(tensors, facts)


@pytest.fixture
def slot() -> Slot:
    return Slot()
