"""Parquet files as image sets: splits, columns, classes, cache, and what is refused."""

from __future__ import annotations

import io
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from backdoorkit.api import InputError, batches
from backdoorkit.errors import ConfigError
from backdoorkit.hooks.options import structure
from backdoorkit_huggingface import HuggingFaceOptions
from backdoorkit_huggingface._dataset import HuggingFaceImages

NAMES = ["cat", "dog"]


def pixels_of(count, seed=0, size=(5, 6)):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def write(path, pixels, labels, *, image="img", label="label", names=NAMES, extra=None):
    """A Parquet file as the hub has them: columns, and what they mean in the schema's remarks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {image: [{"bytes": png(one), "path": None} for one in pixels], label: list(labels)}
    features = {image: datasets.Image(), label: datasets.ClassLabel(names=names)}
    for name, (values, kind) in (extra or {}).items():
        columns[name], features[name] = values, kind
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(path)


def write_plain(path, pixels, labels, image="img", label="label"):
    """A Parquet file without the library's remarks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    column = pa.array([{"bytes": png(one), "path": None} for one in pixels])
    pq.write_table(pa.table({image: column, label: pa.array(labels)}), path)


def write_splits(folder):
    write(folder / "train-00000-of-00002.parquet", pixels_of(4), [0, 1, 1, 0])
    write(folder / "train-00001-of-00002.parquet", pixels_of(3, seed=1), [1, 1, 0])
    write(folder / "test-00000-of-00001.parquet", pixels_of(2, seed=2), [0, 1])


def as_images(*pixels):
    return torch.from_numpy(np.concatenate(pixels)).permute(0, 3, 1, 2)


def load(tmp_path, split="train", **options):
    options = {"path": str(tmp_path / "data"), **options}
    return HuggingFaceImages(HuggingFaceOptions(**options)).load(split, tmp_path / "cache")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_folder_of_parquet_files_is_read_in_their_order(tmp_path):
    write_splits(tmp_path / "data")
    train, test = load(tmp_path), load(tmp_path, "test")
    assert torch.equal(train.images, as_images(pixels_of(4), pixels_of(3, seed=1)))
    assert train.labels.tolist() == [0, 1, 1, 0, 1, 1, 0]
    assert train.class_names == ("cat", "dog")
    assert torch.equal(test.images, as_images(pixels_of(2, seed=2)))
    assert test.labels.tolist() == [0, 1]


def test_splits_may_be_folders_or_have_other_names(tmp_path):
    write(tmp_path / "data" / "fit" / "0.parquet", pixels_of(4), [0, 1, 1, 0])
    write(tmp_path / "data" / "held.parquet", pixels_of(2, seed=2), [0, 1])
    names = {"train_split": "fit", "test_split": "held"}
    assert len(load(tmp_path, **names)) == 4
    assert len(load(tmp_path, "test", **names)) == 2


def test_files_may_be_given_by_pattern(tmp_path):
    write_splits(tmp_path / "data")
    files = {
        "path": None,
        "train_files": str(tmp_path / "data" / "train-*.parquet"),
        "test_files": str(tmp_path / "**" / "test-*.parquet"),
    }
    assert len(load(tmp_path, **files)) == 7
    assert len(load(tmp_path, "test", **files)) == 2


def test_single_file_is_split_class_by_class_and_always_alike(tmp_path):
    labels = [0, 1, 0, 1, 0, 1, 0, 1, 0, 0]
    write(tmp_path / "one.parquet", pixels_of(10), labels)
    single = {"path": str(tmp_path / "one.parquet"), "test_ratio": 0.4}
    train, test = load(tmp_path, **single), load(tmp_path, "test", **single)
    assert torch.bincount(train.labels).tolist() == [4, 2]
    assert torch.bincount(test.labels).tolist() == [2, 2]
    both = torch.cat([train.images, test.images]).flatten(1).tolist()
    assert sorted(both) == sorted(as_images(pixels_of(10)).flatten(1).tolist())


def test_labels_without_names_are_numbers_or_sorted_words(tmp_path):
    write_plain(tmp_path / "data" / "train.parquet", pixels_of(3), [0, 2, 1])
    write_plain(tmp_path / "data" / "test.parquet", pixels_of(1), [0])
    assert load(tmp_path).class_names == load(tmp_path, "test").class_names == ("0", "1", "2")
    words = tmp_path / "words"
    write_plain(words / "train.parquet", pixels_of(3), ["ship", "cat", "ship"])
    write_plain(words / "test.parquet", pixels_of(1), ["ship"])
    assert load(tmp_path, path=str(words)).labels.tolist() == [1, 0, 1]
    test = load(tmp_path, "test", path=str(words))
    assert test.labels.tolist() == [1]
    assert test.class_names == ("cat", "ship")


def test_form_of_the_pictures_follows_the_options(tmp_path):
    write_splits(tmp_path / "data")
    assert load(tmp_path).shape == (3, 5, 6)
    assert load(tmp_path, channels=1).shape == (1, 5, 6)
    assert load(tmp_path, size=4).shape == (3, 4, 4)
    stretched, cut = load(tmp_path, size=4, fit="stretch"), load(tmp_path, size=4)
    assert not torch.equal(stretched.images, cut.images)


def test_streamed_set_gives_the_same_batches(tmp_path):
    write_splits(tmp_path / "data")
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
    nothing = torch.empty(0, dtype=torch.int64)
    assert streamed.fetch(nothing).shape == (0, 3, 5, 6)


def test_second_load_decodes_nothing(tmp_path, monkeypatch):
    write_splits(tmp_path / "data")
    first = load(tmp_path)
    assert len(list((tmp_path / "cache" / "huggingface-decoded").iterdir())) == 1

    def refuse(self, split, cache):
        raise AssertionError("opened again")

    monkeypatch.setattr(HuggingFaceImages, "_opened", refuse)
    again = load(tmp_path)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert first.class_names == again.class_names


def test_changed_file_is_read_again(tmp_path):
    write_splits(tmp_path / "data")
    assert load(tmp_path).labels.tolist()[:4] == [0, 1, 1, 0]
    write(tmp_path / "data" / "train-00000-of-00002.parquet", pixels_of(4, seed=5), [1, 1, 1, 1])
    changed = load(tmp_path)
    assert changed.labels.tolist()[:4] == [1, 1, 1, 1]
    assert torch.equal(changed.images[:4], as_images(pixels_of(4, seed=5)))


def test_damaged_kept_file_is_made_again(tmp_path, caplog):
    write_splits(tmp_path / "data")
    first = load(tmp_path)
    (kept,) = (tmp_path / "cache" / "huggingface-decoded").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert torch.equal(load(tmp_path).images, first.images)
    assert "cannot be used and are made again" in caplog.text
    caplog.clear()
    assert torch.equal(load(tmp_path).images, first.images)
    assert not caplog.text


def test_nothing_is_kept_where_that_is_not_wanted(tmp_path):
    write_splits(tmp_path / "data")
    load(tmp_path, keep_decoded=False)
    load(tmp_path, streaming="always")
    assert not (tmp_path / "cache" / "huggingface-decoded").exists()


def test_decoded_hub_images_are_kept_only_for_a_full_commit():
    def kept(revision):
        dataset = HuggingFaceImages(HuggingFaceOptions(path="a/b", revision=revision))
        return dataset._decoded_path("train", Path("cache")) is not None

    assert kept("0123456789abcdef0123456789abcdef01234567")
    assert not kept("main")
    assert not kept(None)


def test_fingerprint_follows_local_files_and_hub_revisions(tmp_path):
    write_splits(tmp_path / "data")
    local = HuggingFaceImages(HuggingFaceOptions(path=str(tmp_path / "data")))
    before = local.fingerprint()
    assert local.fingerprint() == before
    test = tmp_path / "data" / "test-00000-of-00001.parquet"
    os.utime(test, ns=(1, 1))
    assert local.fingerprint() == before
    test.write_bytes(next((tmp_path / "data").glob("train-*")).read_bytes())
    assert local.fingerprint() != before
    hub = {
        HuggingFaceImages(HuggingFaceOptions(path="a/b", revision=revision)).fingerprint()
        for revision in (None, "v1", "v2")
    }
    assert len(hub) == 3


def test_hub_name_goes_to_the_library_with_split_and_revision(tmp_path, monkeypatch):
    calls = []

    def load_dataset(**options):
        calls.append(options)
        images = [{"bytes": png(one), "path": None} for one in pixels_of(2)]
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
        )
        return datasets.Dataset.from_dict({"image": images, "label": [1, 0]}, features=features)

    monkeypatch.setattr("datasets.load.load_dataset", load_dataset)
    data = load(
        tmp_path, "test", path="owner/name", subset="small", revision="v1", test_split="val"
    )
    assert data.labels.tolist() == [1, 0]
    assert [call["split"] for call in calls] == ["train", "val"]
    assert {(c["path"], c["name"], c["revision"]) for c in calls} == {("owner/name", "small", "v1")}
    assert calls[0]["cache_dir"] == str(tmp_path / "cache" / "huggingface")


def test_pictures_that_are_only_named_are_read_from_downloads_alone(tmp_path, monkeypatch):
    def write_named(folder):
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(png(pixels_of(1)[0]))
        row = {"bytes": None, "path": str(folder / "a.png")}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        rows = datasets.Dataset.from_dict({"image": [row], "label": [0]}, features=features)
        monkeypatch.setattr("datasets.load.load_dataset", lambda **options: rows)

    write_named(tmp_path / "cache" / "huggingface" / "downloads")
    assert torch.equal(load(tmp_path, path="a/b").images, as_images(pixels_of(1)))
    write_named(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="only pictures inside the table or from the hub"):
        load(tmp_path, path="a/b")


def test_failure_of_the_library_is_one_line(tmp_path, monkeypatch):
    def load_dataset(**options):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr("datasets.load.load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"a/b \(split 'train'\) cannot be opened: no network"):
        load(tmp_path, path="a/b")


def numbers(count):
    return list(range(count)), datasets.Value("int64")


def more_images(count):
    return [{"bytes": png(one), "path": None} for one in pixels_of(count)], datasets.Image()


@pytest.mark.parametrize(
    ("extra", "options", "message"),
    [
        (
            {"fine": ([0, 1], datasets.ClassLabel(names=NAMES))},
            {},
            r"several columns could hold the classes \(label, fine\); set label_column",
        ),
        (
            {"thumb": more_images(2)},
            {},
            r"several columns could hold the pictures \(img, thumb\); set image_column",
        ),
        ({}, {"image_column": "image"}, "column 'image' is not there for pictures; set image_col"),
        ({}, {"image_column": "label"}, "column 'label' holds no pictures; set image_column to"),
        ({}, {"label_column": "img"}, "column 'img' holds no classes"),
    ],
)
def test_columns_that_are_not_clear_are_refused(tmp_path, extra, options, message):
    write(tmp_path / "data" / "train.parquet", pixels_of(2), [0, 1], extra=extra)
    with pytest.raises(InputError, match=message):
        load(tmp_path, **options)


def test_named_classes_win_over_numbers_and_a_choice_wins_over_both(tmp_path):
    extra = {"width": numbers(2), "thumb": more_images(2)}
    write(tmp_path / "data" / "train.parquet", pixels_of(2), [1, 0], extra=extra)
    assert load(tmp_path, image_column="img").labels.tolist() == [1, 0]
    chosen = load(tmp_path, image_column="thumb", label_column="width")
    assert chosen.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([-1, -1], "published without its labels"),
        ([0, 7], "go from 0 to 7, and there are 2 classes, 0 to 1"),
        ([0, None], "1 of 2 rows have no class"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, labels, message):
    write_plain(tmp_path / "data" / "train.parquet", pixels_of(2), [0, 1])
    write_plain(tmp_path / "data" / "test.parquet", pixels_of(2), labels)
    with pytest.raises(InputError, match=message):
        load(tmp_path, "test")


def test_test_classes_that_training_lacks_are_refused(tmp_path):
    write_plain(tmp_path / "data" / "train.parquet", pixels_of(2), ["a", "b"])
    write_plain(tmp_path / "data" / "test.parquet", pixels_of(2), ["a", "c"])
    with pytest.raises(InputError, match="classes that the training split lacks: c"):
        load(tmp_path, "test")


def test_splits_that_number_the_classes_differently_are_refused(tmp_path):
    write(tmp_path / "data" / "train.parquet", pixels_of(2), [0, 1])
    write(tmp_path / "data" / "test.parquet", pixels_of(2), [0, 1], names=["dog", "cat"])
    with pytest.raises(InputError, match="name the classes of column 'label' differently"):
        load(tmp_path, "test")


def test_test_split_without_the_columns_is_refused(tmp_path):
    write(tmp_path / "data" / "train.parquet", pixels_of(2), [0, 1])
    write(tmp_path / "data" / "test.parquet", pixels_of(2), [0, 1], image="picture")
    with pytest.raises(InputError, match="the test split lacks the column 'img'"):
        load(tmp_path, "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture", "row 1 cannot be read as a picture"),
        (png(pixels_of(1, size=(7, 7))[0]), "row 1 is 7x7 pixels and the first picture 6x5"),
        (png(np.zeros((5, 6), dtype=np.uint16)), "row 1 has more than 8 bits"),
        (None, "row 1 of column 'img' is empty"),
    ],
    ids=["damaged", "other size", "16 bits", "empty"],
)
@pytest.mark.parametrize("streaming", ["auto", "always"])
def test_picture_that_cannot_be_used_is_named_by_its_row(tmp_path, content, message, streaming):
    good = png(pixels_of(1)[0])
    column = pa.array(
        [{"bytes": one, "path": None} for one in (good, content)],
        type=pa.struct({"bytes": pa.binary(), "path": pa.string()}),
    )
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "train.parquet"
    pq.write_table(pa.table({"img": column, "label": [0, 1]}), path)
    with pytest.raises(InputError, match=message):
        load(tmp_path, streaming=streaming).images  # noqa: B018 - streamed pictures are read here


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing", "missing does not exist"),
        ("empty", "holds no Parquet files"),
        ("other", r"no Parquet file of .*other is of the split 'train' \(trainees\.parquet\)"),
        ("damaged", "cannot be opened"),
    ],
)
def test_folder_without_the_split_is_refused(tmp_path, path, message):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "other" / "trainees.parquet", pixels_of(1), [0])
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "train.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match=message):
        load(tmp_path, path=str(tmp_path / path))


def test_pattern_that_matches_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no file matches train_files '.*none.*'"):
        load(tmp_path, path=None, train_files=str(tmp_path / "none*"), test_files="x")


def test_source_must_be_given_in_exactly_one_way():
    for values in ({}, {"train_files": "a"}, {"path": "a", "test_files": "b"}):
        with pytest.raises(ConfigError, match="set "):
            structure(HuggingFaceOptions, values)
