"""Pictures beside a model that somebody was handed: what labels they get, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from backdoorkit.data._given import GivenImages, NoImages
from backdoorkit.data.options import GivenImagesOptions, NoImagesOptions
from backdoorkit.errors import InputError


def picture(path, size=(6, 4), mode="RGB", value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size[::-1] + ((3,) if mode == "RGB" else ())
    Image.fromarray(np.full(shape, value, dtype=np.uint8)).save(path)


def given(path, num_classes=3, **options):
    config = GivenImagesOptions(path=path, num_classes=num_classes, **options)
    return GivenImages(config).load("train", path)


def refusal(path, **options):
    with pytest.raises(InputError) as caught:
        given(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "images"


@pytest.fixture
def classes(folder):
    for name in ("ant", "bee", "cat"):
        picture(folder / name / "1.png")
    picture(folder / "cat" / "2.png")
    return folder


def test_every_picture_is_in_both_splits(classes):
    dataset = GivenImages(GivenImagesOptions(path=classes, num_classes=3))
    train, test = (dataset.load(split, classes) for split in ("train", "test"))
    assert train.labels.tolist() == test.labels.tolist() == [0, 1, 2, 2]
    assert train.shape == (3, 4, 6)


def test_folders_of_numbers_are_labels_and_need_not_be_complete(folder):
    picture(folder / "07" / "a.png")
    picture(folder / "2" / "a.png")
    assert given(folder, 10).labels.tolist() == [7, 2]
    assert "class 7" in refusal(folder, num_classes=7)


def test_names_of_classes_say_which_label_a_folder_has(classes):
    names = ("cat", "dog", "bee", "ant")
    assert given(classes, 4, class_names=names).labels.tolist() == [3, 2, 0, 0]
    assert "'bee'" in refusal(classes, class_names=("ant", "cat", "dog"))


def test_names_in_another_number_than_classes_are_no_labels(classes):
    message = refusal(classes, num_classes=4)
    assert "3 class folders" in message
    assert "4 classes" in message


def test_labels_come_from_a_list(classes, tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text("ant/1.png,2\nbee/1.png,1\ncat/1.png,0\ncat/2.png,1\n")
    assert given(classes, labels=file).labels.tolist() == [2, 1, 0, 1]
    file.write_text("ant/1.png,2\nbee/1.png,1\n")
    assert "cat/1.png and 1 more" in refusal(classes, labels=file)
    file.write_text("ant/1.png;2\n")
    assert "CSV" in refusal(classes, labels=file)


def test_a_flat_folder_has_images_and_no_labels(folder):
    for name in ("b.png", "a.png"):
        picture(folder / name)
    assert given(folder).labels.tolist() == [0, 0]


def test_grey_pictures_are_refused_unless_they_are_to_be_converted(folder):
    picture(folder / "a.png", mode="L")
    assert "are grey" in refusal(folder)
    assert given(folder, convert=True).shape == (3, 4, 6)
    picture(folder / "b.png")
    assert "b.png" in refusal(folder, channels=1)


def test_pictures_of_several_sizes_want_to_know_which(folder):
    picture(folder / "a.png")
    picture(folder / "b.png", size=(8, 8))
    assert "differ in size" in refusal(folder)
    assert given(folder, size=5).shape == (3, 5, 5)


def test_what_is_no_folder_of_pictures_is_refused(folder, classes):
    assert "is not a folder" in refusal(folder / "none")
    (folder / "empty").mkdir()
    assert "holds no pictures" in refusal(folder / "empty")
    picture(folder / "loose.png")
    assert "loose.png" in refusal(folder)


def test_a_truncated_picture_is_named(folder):
    picture(folder / "a.png", size=(64, 64))
    content = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(content[: len(content) // 2])
    assert "a.png" in refusal(folder)


def test_no_images_are_one_grey_one_per_class():
    images = NoImages(NoImagesOptions(num_classes=4, size=5, channels=1)).load("test", None)
    assert images.labels.tolist() == [0, 1, 2, 3]
    assert images.images.unique().tolist() == [128]
