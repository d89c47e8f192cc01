"""Folders of class folders: layouts, forms, and one clear line for each fault."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image

from backdoorkit.data._folder import ImageFolder
from backdoorkit.data.batches import batches
from backdoorkit.data.options import FolderOptions
from backdoorkit.errors import InputError


def picture(seed, size=(6, 5), mode="RGB"):
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels)


def write(folder, classes=("cat", "dog"), count=5, **form):
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            picture(100 * label + i, **form).save(folder / name / f"{i:02}.png")
    return folder


def load(path, split="train", **options):
    return ImageFolder(FolderOptions(path=path, **options)).load(split, path / "cache")


def pixels_of(path):
    return torch.tensor(np.asarray(Image.open(path))).permute(2, 0, 1)


def test_folder_without_splits_is_split_class_by_class(tmp_path):
    write(tmp_path)
    train, test = load(tmp_path), load(tmp_path, "test")
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    assert test.labels.tolist() == [0, 1]
    assert train.class_names == ("cat", "dog")
    assert torch.equal(train.images[0], pixels_of(tmp_path / "cat" / "00.png"))
    assert torch.equal(test.images[1], pixels_of(tmp_path / "dog" / "04.png"))


def test_train_and_test_folders_are_used(tmp_path):
    write(tmp_path / "train")
    write(tmp_path / "val", classes=("dog",), count=2)
    train, test = load(tmp_path), load(tmp_path, "test")
    assert len(train) == 10
    assert test.labels.tolist() == [1, 1]  # numbered as in training, though a class is missing
    assert test.class_names == ("cat", "dog")


def test_pictures_of_one_size_need_no_size(tmp_path):
    write(tmp_path)
    assert load(tmp_path).shape == (3, 5, 6)


def test_grey_becomes_rgb_or_stays_by_option(tmp_path):
    write(tmp_path, mode="L")
    rgb, grey = load(tmp_path), load(tmp_path, channels=1)
    assert rgb.shape == (3, 5, 6)
    assert grey.shape == (1, 5, 6)
    assert torch.equal(rgb.images[:, 1], grey.images[:, 0])


def test_size_cuts_the_middle_or_stretches(tmp_path):
    wide = Image.new("RGB", (12, 4), (255, 0, 0))
    wide.paste((0, 0, 255), (4, 0, 8, 4))  # blue in the middle third
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(5):
            wide.save(tmp_path / name / f"{i}.png")
    cut = load(tmp_path, size=4).images
    assert cut.shape[1:] == (3, 4, 4)
    assert (cut[:, 2] == 255).all()
    stretched = load(tmp_path, size=4, fit="stretch").images
    assert (stretched[:, 0, :, 0] == 255).all()


def test_streamed_folder_gives_the_same_batches(tmp_path):
    write(tmp_path)
    kept, streamed = load(tmp_path), load(tmp_path, streaming="always")
    assert streamed.is_streamed
    assert not kept.is_streamed
    for left, right in zip(
        batches(kept, 3, generator=torch.Generator().manual_seed(1)),
        batches(streamed, 3, generator=torch.Generator().manual_seed(1)),
        strict=True,
    ):
        assert torch.equal(left.images, right.images)
        assert torch.equal(left.labels, right.labels)


def test_fingerprint_follows_the_files(tmp_path):
    write(tmp_path)
    dataset = ImageFolder(FolderOptions(path=tmp_path))
    first = dataset.fingerprint()
    assert dataset.fingerprint() == first
    os.utime(tmp_path / "cat" / "00.png", ns=(1, 1))
    assert dataset.fingerprint() == first
    (tmp_path / "dog" / "04.png").unlink()
    second = dataset.fingerprint()
    (tmp_path / "dog" / "03.png").write_bytes((tmp_path / "cat" / "00.png").read_bytes())
    assert len({first, second, dataset.fingerprint()}) == 3


def test_fingerprint_does_not_depend_on_where_the_folder_is(tmp_path):
    write(tmp_path / "here")
    before = ImageFolder(FolderOptions(path=tmp_path / "here")).fingerprint()
    (tmp_path / "here").rename(tmp_path / "there")
    assert ImageFolder(FolderOptions(path=tmp_path / "there")).fingerprint() == before


def test_other_files_are_passed_over(tmp_path):
    write(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"x")
    (tmp_path / ".cache").mkdir()
    assert len(load(tmp_path)) == 8


def damage(tmp_path):
    (tmp_path / "cat" / "01.png").write_bytes(b"no picture")


def cut_short(tmp_path):
    path = tmp_path / "cat" / "01.png"
    picture(0, size=(60, 50)).save(path)
    path.write_bytes(path.read_bytes()[:200])


def empty(tmp_path):
    (tmp_path / "fish").mkdir()


def mix(tmp_path):
    picture(0, size=(7, 5)).save(tmp_path / "dog" / "01.png")


def deepen(tmp_path):
    Image.fromarray(np.zeros((5, 6), dtype=np.uint16)).save(tmp_path / "cat" / "01.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damage, r"cat.01\.png cannot be read as a picture"),
        (cut_short, r"cat.01\.png (cannot be read|is 60x50)"),
        (empty, r"fish holds no pictures"),
        (mix, r"00\.png is 6x5 pixels, .*dog.01\.png is 7x5; set size"),
        (deepen, r"more than 8 bits for a pixel"),
    ],
)
@pytest.mark.parametrize("streaming", ["auto", "always"])
def test_fault_is_one_line_that_names_the_file(tmp_path, spoil, message, streaming):
    write(tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path, streaming=streaming).images  # noqa: B018 - streamed pictures are read here
    assert "\n" not in str(caught.value)


def test_cut_short_picture_is_refused_when_decoded(tmp_path):
    write(tmp_path)
    cut_short(tmp_path)
    with pytest.raises(InputError, match=r"01\.png cannot be read as a picture"):
        load(tmp_path, size=8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "holds no class folders"),
        (lambda path: (path / "train" / "cat").mkdir(parents=True), "has a train folder and none"),
        (lambda path: path.rmdir(), "is not a folder; set path to one"),
    ],
)
def test_folder_of_another_layout_is_refused(tmp_path, make, message):
    root = tmp_path / "root"
    root.mkdir()
    make(root)
    with pytest.raises(InputError, match=message):
        load(root)


def test_class_that_is_only_in_the_test_folder_is_refused(tmp_path):
    write(tmp_path / "train")
    write(tmp_path / "test", classes=("cat", "fish"))
    with pytest.raises(InputError, match="class folders that the training split lacks: fish"):
        load(tmp_path, "test")


def test_too_few_pictures_to_split_are_refused(tmp_path):
    write(tmp_path, classes=("cat",), count=1)
    with pytest.raises(InputError, match="none of the 1 pictures is left for the train split"):
        load(tmp_path)
