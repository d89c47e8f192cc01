"""Weights that others published: read, loaded, and as accurate as measured elsewhere."""

from __future__ import annotations

import functools
import importlib
import io
import sys
from pathlib import Path

import pytest
import torch

from backdoorkit.models._external import CallableArchitecture
from backdoorkit.models._wide_resnet import WRN16x1
from backdoorkit.models.catalog import CallableConfig, FixedConfig
from backdoorkit.models.checkpoints import (
    infer_architecture,
    infer_num_classes,
    load_weights,
    read_weights,
)
from backdoorkit.models.normalized import NormalizedModel

SUFFIXES = (".pth", ".tar", ".th")
DATA = Path(__file__).parents[3] / "shared" / "data"
COUNT = 500
IMAGE_SHAPE = (3, 32, 32)
NONE = ([0.0] * 3, [1.0] * 3)
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

pytestmark = [
    pytest.mark.shared_data,
    pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the checkout"),
]


@functools.cache
def pictures():
    """The first test images, in [0, 1], and their labels."""
    parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    image = importlib.import_module("PIL.Image")
    numpy = importlib.import_module("numpy")
    file = next((DATA / "cifar10").glob("test-*.parquet"))
    rows = next(parquet.ParquetFile(file).iter_batches(COUNT)).to_pylist()
    pixels = [image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB") for row in rows]
    images = torch.from_numpy(numpy.stack([numpy.asarray(p) for p in pixels]))
    return images.permute(0, 3, 1, 2).float() / 255, torch.tensor([row["label"] for row in rows])


def checkpoint(folder):
    return next(f for f in (DATA / "checkpoints" / folder).iterdir() if f.suffix in SUFFIXES)


def grid(images):
    """The checkerboard of the ABL and NAD code, in the lower right corner."""
    images[..., -3:, -3:] = torch.tensor([[0.0, 0, 1], [0, 1, 0], [1, 0, 1]])
    return images


def square(images):
    images[..., 27:31, 27:31] = 1
    return images


def measured(folder, architecture, statistics, trigger=None, target=None):
    """Accuracy and attack success (both in percent) on the first images."""
    images, labels = pictures()
    model = NormalizedModel(architecture.build(IMAGE_SHAPE, 10), *statistics)
    file = checkpoint(folder)
    load_weights(model, read_weights(file), path=file)
    model.eval()
    with torch.inference_mode():
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
        if trigger is None:
            return 100 * accuracy, None
        others = trigger(images[labels != target].clone())
        success = (model(others).argmax(1) == target).float().mean().item()
    return 100 * accuracy, 100 * success


# Four standard deviations of an accuracy of 84 % on 500 images are 6.6 points.
@pytest.mark.parametrize(
    ("folder", "target", "accuracy", "success"),
    [
        ("abl_wrn16_1_grid_t0", 0, 83.35, 99.99),
        ("nad_wrn16_1_backdoored_t5", 5, 84.80, 100.0),
        ("nad_wrn16_1_teacher", 5, 84.39, 2.79),
    ],
)
def test_wide_resnets_of_abl_and_nad(folder, target, accuracy, success):
    measurement = measured(folder, WRN16x1(FixedConfig()), NONE, grid, target)
    assert measurement == (
        pytest.approx(accuracy, abs=6.6),
        pytest.approx(success, abs=3),
    )


@pytest.fixture
def own_module(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    yield
    sys.modules.pop("published_networks", None)


@pytest.mark.parametrize(
    ("folder", "function", "statistics", "trigger", "accuracy", "success"),
    [
        ("ibau_smallvgg_badnets_t8", "small_vgg", NONE, square, 84.46, 97.74),
        ("resnet20_clean", "ResNet20", IMAGENET, None, 91.73, None),
    ],
)
def test_networks_of_other_authors_come_in_as_callables(
    own_module, folder, function, statistics, trigger, accuracy, success
):
    architecture = CallableArchitecture(CallableConfig(target=f"published_networks:{function}"))
    accuracy_now, success_now = measured(folder, architecture, statistics, trigger, 8)
    assert accuracy_now == pytest.approx(accuracy, abs=6.6)
    assert success_now == (None if success is None else pytest.approx(success, abs=3))


@pytest.mark.parametrize(
    ("folder", "architecture"),
    [
        ("abl_wrn16_1_grid_t0", "wrn-16-1"),
        ("nad_wrn16_1_backdoored_t5", "wrn-16-1"),
        ("nad_wrn16_1_teacher", "wrn-16-1"),
        ("ibau_smallvgg_badnets_t8", None),
        ("ibau_smallvgg_trojan_sq_t2", None),
        ("resnet20_clean", None),
    ],
)
def test_all_are_read_and_recognised(folder, architecture):
    weights = read_weights(checkpoint(folder))
    assert infer_num_classes(weights) == 10
    assert infer_architecture(weights) == architecture
    assert not any(name.startswith("module.") for name in weights)
