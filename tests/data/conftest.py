"""Small sets of images, in memory and streamed."""

from __future__ import annotations

import pytest
import torch

from backdoorkit.data.images import ImageSet


class CountingSource:
    """A streamed source over a tensor that remembers how many images were asked for."""

    def __init__(self, images):
        self.images = images
        self.shape = tuple(images.shape[1:])
        self.device = torch.device("cpu")
        self.fetched = 0

    def __len__(self):
        return len(self.images)

    def fetch(self, positions):
        self.fetched += len(positions)
        return self.images[positions]


def random_images(count=30, shape=(3, 6, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)


def in_memory(count=30, shape=(3, 6, 5), num_classes=5):
    labels = torch.arange(count) * 7 % num_classes
    return ImageSet.from_tensors(random_images(count, shape), labels, num_classes=num_classes)


def streamed(count=30, shape=(3, 6, 5), num_classes=5):
    labels = torch.arange(count) * 7 % num_classes
    return ImageSet.from_source(
        CountingSource(random_images(count, shape)),
        labels,
        num_classes=num_classes,
        streaming="always",
    )


@pytest.fixture(params=[in_memory, streamed])
def make_set(request):
    """Makes the same set, once in memory and once streamed."""
    return request.param


@pytest.fixture
def counting_source():
    return CountingSource


@pytest.fixture
def set_in_memory():
    return in_memory


@pytest.fixture
def set_streamed():
    return streamed


@pytest.fixture
def make_images():
    return random_images


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")
