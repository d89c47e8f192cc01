"""Opening data sets by name, and the catalogue that offers them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from PIL import Image

from backdoorkit.contracts import Dataset
from backdoorkit.data.catalog import backdoorkit_datasets
from backdoorkit.data.images import ImageSet
from backdoorkit.data.loading import PictureForm, StreamedFiles, load_split, picture_sizes
from backdoorkit.data.options import DataOptions
from backdoorkit.errors import ConfigError, ContractError, InputError, UnknownNameError
from backdoorkit.hooks.info import Kind
from backdoorkit.hooks.options import json_schema, structure
from backdoorkit.hooks.registry import load_registry


class Odd(Dataset):
    def load(self, split, cache):
        if split == "train":
            return [1, 2, 3]
        nothing = torch.empty(0, 1, 2, 2, dtype=torch.uint8)
        return ImageSet.from_tensors(nothing, torch.empty(0, dtype=torch.int64))


@pytest.fixture
def registry():
    return load_registry(entry_points=[])


def test_digits_open_by_name_and_options(registry, tmp_path):
    data = load_split(registry, "digits", {"size": 16, "channels": 3}, "test", tmp_path)
    assert (len(data), data.shape) == (400, (3, 16, 16))


def test_wrong_names_splits_and_options_are_refused(registry, tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        load_split(registry, "digit", {}, "test", tmp_path)
    with pytest.raises(InputError, match="splits 'train' and 'test', not 'val'"):
        load_split(registry, "digits", {}, "val", tmp_path)
    with pytest.raises(ConfigError, match="size"):
        load_split(registry, "digits", {"size": 9}, "test", tmp_path)


def test_data_set_that_gives_no_images_is_refused(registry, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "create", lambda method, config: Odd(config))
    with pytest.raises(ContractError, match="to give an ImageSet, got list"):
        load_split(registry, "digits", {}, "train", tmp_path)
    with pytest.raises(InputError, match="test split of 'digits' holds no images"):
        load_split(registry, "digits", {}, "test", tmp_path)


def test_catalogue_offers_all_built_in_sets_and_each_can_be_made(registry):
    names = {info.name for info in backdoorkit_datasets()}
    assert names == {
        *("digits", "cifar10", "cifar100", "gtsrb", "mnist", "fashion-mnist", "svhn"),
        *("image-folder", "given-images", "no-images"),
    }
    required = {
        "image-folder": {"path": "somewhere"},
        "given-images": {"path": "somewhere", "num_classes": 10},
        "no-images": {"num_classes": 10, "size": 8},
    }
    for info in backdoorkit_datasets():
        values = required.get(info.name, {})
        method = registry.find(info.name, Kind.DATASET)
        dataset = registry.create(method, structure(info.config, values))
        assert isinstance(dataset, Dataset)
        assert json_schema(info.config)["additionalProperties"] is False


def test_catalogue_and_options_import_no_torch():
    code = (
        "import sys, backdoorkit.data.catalog as c; list(c.backdoorkit_datasets()); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'torchvision', 'sklearn', 'PIL')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_data_options_know_their_bounds():
    assert DataOptions().reserve_ratio == 0.05
    with pytest.raises(ConfigError, match="reserve_ratio"):
        structure(DataOptions, {"reserve_ratio": 1.5})
    with pytest.raises(ConfigError, match="train_size"):
        structure(DataOptions, {"train_size": 0})


def test_streamed_files_come_in_the_order_asked_for(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(20)]
    for i, path in enumerate(paths):
        Image.new("RGB", (4, 3), (i, 0, 0)).save(path)
    source = StreamedFiles(paths, PictureForm(3, 3, 4))
    fetched = source.fetch(torch.tensor([7, 0, 19, 7]))
    assert fetched.shape == (4, 3, 3, 4)
    assert fetched.is_contiguous()
    assert fetched[:, 0, 0, 0].tolist() == [7, 0, 19, 7]
    assert picture_sizes(paths[:2]) == [(4, 3), (4, 3)]


def test_picture_of_another_size_is_refused_where_no_fit_is_given(tmp_path):
    Image.new("RGB", (5, 3)).save(tmp_path / "a.png")
    source = StreamedFiles([tmp_path / "a.png"], PictureForm(3, 3, 4))
    with pytest.raises(InputError, match=r"a\.png is 5x3 pixels .* 4x3; set size"):
        source.fetch(torch.tensor([0]))


def test_picture_that_would_fill_the_memory_is_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("backdoorkit.data.loading._MOST_PIXELS", 10)
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png has 4x3 pixels, which is more than is read"):
        StreamedFiles([tmp_path / "a.png"], PictureForm(3, 3, 4)).fetch(torch.tensor([0]))
