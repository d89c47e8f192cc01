"""The field's usual data sets, from small files in their official layouts."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5

from backdoorkit.data._torchvision import FashionMnist, HouseNumbers, Mnist, TrafficSigns
from backdoorkit.data.options import DownloadOptions, TrafficSignOptions
from backdoorkit.errors import InputError


def write_idx(path, values):
    shape = struct.pack(f">{values.ndim}i", *values.shape)
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + shape + values.tobytes())


def write_mnist(root, name):
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for prefix, count in (("train", 12), ("t10k", 5)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        write_idx(folder / f"{prefix}-images-idx3-ubyte", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels)
    return torch.from_numpy(images)


@pytest.mark.parametrize(
    ("dataset", "name", "first"),
    [(Mnist, "MNIST", "0"), (FashionMnist, "FashionMNIST", "T-shirt/top")],
)
def test_mnist_and_its_relatives(tmp_path, dataset, name, first):
    test_images = write_mnist(tmp_path, name)
    opened = dataset(DownloadOptions(root=tmp_path))
    train, test = opened.load("train", tmp_path), opened.load("test", tmp_path)
    assert (len(train), train.shape, train.num_classes) == (12, (1, 28, 28), 10)
    assert torch.equal(test.images[:, 0], test_images)
    assert train.labels.tolist() == [*range(10), 0, 1]
    assert train.class_names[0] == first


def test_house_numbers_call_zero_zero(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    path = tmp_path / "test_32x32.mat"
    savemat(path, {"X": pixels, "y": np.array([[10], [1], [9], [2]])})
    entry = ["", path.name, calculate_md5(path)]
    monkeypatch.setitem(datasets.SVHN.split_list, "test", entry)
    data = HouseNumbers(DownloadOptions(root=tmp_path)).load("test", tmp_path)
    assert data.labels.tolist() == [0, 1, 9, 2]
    assert torch.equal(data.images, torch.from_numpy(pixels).permute(3, 2, 0, 1))
    assert data.num_classes == 10


def test_traffic_signs_are_brought_to_one_size(tmp_path):
    folder = tmp_path / "gtsrb" / "GTSRB" / "Training"
    for label, size in ((0, (15, 20)), (42, (40, 40))):
        (folder / f"{label:05}").mkdir(parents=True)
        Image.new("RGB", size, (label, 100, 200)).save(folder / f"{label:05}" / "1.ppm")
    for label in range(1, 42):
        (folder / f"{label:05}").mkdir()
        Image.new("RGB", (16, 16)).save(folder / f"{label:05}" / "1.ppm")
    data = TrafficSigns(TrafficSignOptions(root=tmp_path)).load("train", tmp_path)
    assert (len(data), data.shape, data.num_classes) == (43, (3, 32, 32), 43)
    assert data.images[42, :, 5, 5].tolist() == [42, 100, 200]
    small = TrafficSigns(TrafficSignOptions(root=tmp_path, size=8)).load("train", tmp_path)
    assert small.shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("dataset", "name"),
    [(Mnist, "mnist"), (FashionMnist, "fashion-mnist"), (HouseNumbers, "svhn")],
)
def test_missing_set_is_one_clear_line(tmp_path, dataset, name):
    with pytest.raises(InputError) as caught:
        dataset(DownloadOptions()).load("train", tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{name} is not in {tmp_path / 'torchvision'}")
    assert "set download to fetch it" in message
    assert "\n" not in message


def test_missing_traffic_signs_are_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="gtsrb is not in"):
        TrafficSigns(TrafficSignOptions(root=tmp_path)).load("train", tmp_path)


def test_damaged_file_is_one_clear_line(tmp_path):
    write_mnist(tmp_path, "MNIST")
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"no")
    with pytest.raises(InputError, match="or is damaged there"):
        Mnist(DownloadOptions(root=tmp_path)).load("train", tmp_path)


def test_download_is_tried_only_when_asked_for(tmp_path, monkeypatch):
    def refuse(self):
        raise RuntimeError("no network here")

    monkeypatch.setattr(datasets.MNIST, "download", refuse)
    with pytest.raises(InputError, match="mnist could not be fetched: no network here"):
        Mnist(DownloadOptions(root=tmp_path, download=True)).load("train", tmp_path)


def test_fingerprints_differ_between_sets():
    options = DownloadOptions()
    prints = {dataset(options).fingerprint() for dataset in (Mnist, FashionMnist, HouseNumbers)}
    assert len(prints) == 3
