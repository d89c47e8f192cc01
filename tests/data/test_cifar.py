"""CIFAR from both official archives, and never by unpickling."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from backdoorkit.data import _cifar, _torchvision
from backdoorkit.data._cifar import Cifar10, Cifar100
from backdoorkit.data.options import DownloadOptions
from backdoorkit.errors import InputError


def pixels_of(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def text(value):
    return b"U" + bytes([len(value)]) + value.encode()


def numbers(values):
    return b"](" + b"".join(b"K" + bytes([value]) for value in values) + b"e"


def batch_file(pixels, labels, key="labels", is_column_order=False):
    """As Python 2 wrote the official files: protocol 2, pixels as one string."""
    flag = b"\x88" if is_column_order else b"\x89"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01J"
        + struct.pack("<i", len(labels))
        + b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
        + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + flag
        + b"T"
        + struct.pack("<i", pixels.size)
        + pixels.tobytes()
        + b"tb"
    )
    return (
        b"\x80\x02}("
        + text("batch_label")
        + text("testing batch 1 of 1")
        + text(key)
        + numbers(labels)
        + text("data")
        + array
        + text("filenames")
        + b"]("
        + text("a.png")
        + b"eu."
    )


def load(dataset, root, split, **options):
    return dataset(DownloadOptions(root=root, **options)).load(split, root / "cache")


def write_binary_10(root, damage=b""):
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    pixels, labels = pixels_of(60), np.arange(60) % 10
    records = np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)
    for number in range(5):
        part = records[number * 10 : number * 10 + 10]
        (folder / f"data_batch_{number + 1}.bin").write_bytes(part.tobytes() + damage)
    (folder / "test_batch.bin").write_bytes(records[50:].tobytes())
    return torch.from_numpy(pixels).view(-1, 3, 32, 32), torch.from_numpy(labels)


def write_python_10(root, **changes):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    pixels, labels = pixels_of(12), [9, 0, 3, 1, 2, 8, 7, 7, 0, 5, 4, 6]
    for number in range(5):
        part = slice(2 * number, 2 * number + 2)
        content = batch_file(pixels[part], labels[part], **changes)
        (folder / f"data_batch_{number + 1}").write_bytes(content)
    (folder / "test_batch").write_bytes(batch_file(pixels[10:], labels[10:]))
    return torch.from_numpy(pixels).view(-1, 3, 32, 32), torch.tensor(labels)


@pytest.mark.parametrize(("write", "cut"), [(write_binary_10, 50), (write_python_10, 10)])
def test_cifar10_is_read_from_either_version(tmp_path, write, cut):
    images, labels = write(tmp_path)
    train, test = (load(Cifar10, tmp_path, split) for split in ("train", "test"))
    assert torch.equal(train.images, images[:cut])
    assert torch.equal(train.labels, labels[:cut])
    assert torch.equal(test.images, images[cut:])
    assert torch.equal(test.labels, labels[cut:])
    assert train.class_names[:3] == ("airplane", "automobile", "bird")
    assert train.num_classes == 10


def test_cifar100_binary_has_coarse_labels_first(tmp_path):
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    pixels = pixels_of(3)
    labels = np.array([[7, 99], [0, 20], [19, 0]], dtype=np.uint8)
    (folder / "train.bin").write_bytes(np.concatenate([labels, pixels], axis=1).tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(f"class_{i}" for i in range(100)))
    data = load(Cifar100, tmp_path, "train")
    assert data.labels.tolist() == [99, 20, 0]
    assert torch.equal(data.images, torch.from_numpy(pixels).view(-1, 3, 32, 32))
    assert data.class_names[99] == "class_99"


def test_cifar100_python_version_takes_the_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = pixels_of(3)
    content = batch_file(pixels, [99, 20, 0], key="fine_labels")
    (folder / "test").write_bytes(
        content.replace(text("data"), text("coarse_labels") + numbers([7, 0, 19]) + text("data"))
    )
    names = b"](" + b"".join(text(f"class_{i}") for i in range(100)) + b"e"
    (folder / "meta").write_bytes(
        b"\x80\x02}("
        + text("fine_label_names")
        + names
        + text("coarse_label_names")
        + b"]("
        + text("insects")
        + b"eu."
    )
    data = load(Cifar100, tmp_path, "test")
    assert data.labels.tolist() == [99, 20, 0]
    assert torch.equal(data.images, torch.from_numpy(pixels).view(-1, 3, 32, 32))
    assert (data.class_names[0], data.class_names[99]) == ("class_0", "class_99")


def test_what_a_pickle_would_run_is_not_run(tmp_path):
    write_python_10(tmp_path)
    victim = tmp_path / "victim"
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    command = b"cos\nsystem\n" + text(f"touch {victim}") + b"\x85R0"
    content = path.read_bytes()
    path.write_bytes(content[:2] + command + content[2:])
    assert len(load(Cifar10, tmp_path, "test")) == 2
    assert not victim.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged"),
        (b"\x80\x02}(", "is damaged"),
        (b"\xff\xff\xff", "is damaged"),
        (batch_file(pixels_of(2), [1, 2, 3]), "pixels and labels do not go together"),
        (batch_file(pixels_of(2), [1, 2], key="other"), "pixels and labels do not go together"),
        (batch_file(pixels_of(2), [1, 2], is_column_order=True), "do not go together"),
        (batch_file(pixels_of(2), [1, 10]), "labels go beyond 9"),
    ],
)
def test_damaged_python_file_is_refused(tmp_path, content, message):
    write_python_10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load(Cifar10, tmp_path, "test")


def test_damaged_or_missing_binary_file_is_refused(tmp_path):
    write_binary_10(tmp_path, damage=b"x")
    with pytest.raises(InputError, match=r"data_batch_1\.bin is damaged: its 30731 bytes are no"):
        load(Cifar10, tmp_path, "train")
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").unlink()
    with pytest.raises(InputError, match=r"test_batch\.bin is missing"):
        load(Cifar10, tmp_path, "test")


def test_file_too_large_to_be_official_is_not_read(tmp_path, monkeypatch):
    write_binary_10(tmp_path)
    monkeypatch.setattr(_cifar, "_MOST_BYTES", 30_000)
    with pytest.raises(InputError, match="larger than any official file"):
        load(Cifar10, tmp_path, "test")


def test_missing_set_says_where_it_was_looked_for_and_what_to_do(tmp_path):
    with pytest.raises(InputError) as caught:
        load(Cifar10, tmp_path, "train")
    message = str(caught.value)
    assert f"cifar10 is not in {tmp_path} as cifar-10-batches-bin or cifar-10-batches-py" in message
    assert "set download to fetch it" in message
    assert "\n" not in message


def test_download_happens_only_when_asked_for(tmp_path, monkeypatch):
    def fetch(url, root, md5):
        assert url.endswith("/cifar-10-binary.tar.gz")
        assert len(md5) == 32
        write_binary_10(root)

    monkeypatch.setattr(_torchvision, "download_and_extract_archive", fetch)
    assert len(load(Cifar10, tmp_path, "train", download=True)) == 50


def test_failed_download_is_one_line(tmp_path, monkeypatch):
    def fetch(url, root, md5):
        raise OSError("no\nnetwork")

    monkeypatch.setattr(_torchvision, "download_and_extract_archive", fetch)
    with pytest.raises(InputError, match="cifar10 could not be fetched: no network"):
        load(Cifar10, tmp_path, "train", download=True)
