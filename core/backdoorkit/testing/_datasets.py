"""What data sets must keep. They are loaded without a connection; downloads are not checked."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import torch

from backdoorkit.data.images import ImageSet
from backdoorkit.errors import InputError
from backdoorkit.testing._subject import (
    CheckSkippedError,
    Subject,
    require,
    require_untouched,
    watched_global_state,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["CHECKS"]

_SAMPLES: Final = 64


def loads_both_splits(subject: Subject) -> None:
    """``load`` gives images with labels for ``train`` and for ``test``."""
    for split in ("train", "test"):
        data = _load(subject, split)
        require(isinstance(data, ImageSet), f"{split} is no ImageSet but {data!r}")
        require(len(data) > 0, f"{split} is empty")


def splits_agree(subject: Subject) -> None:
    """Both splits have one shape and the same classes, and labels of those classes."""
    train, test = _load(subject, "train"), _load(subject, "test")
    require(train.shape == test.shape, f"shapes are {train.shape} and {test.shape}")
    require(train.class_names == test.class_names, "the splits name other classes")
    for data in (train, test):
        require(data.labels.dtype == torch.int64, f"labels are {data.labels.dtype}")
        low, high = int(data.labels.min()), int(data.labels.max())
        require(0 <= low <= high < data.num_classes, f"labels reach from {low} to {high}")


def images_are_bytes(subject: Subject) -> None:
    """Images come as uint8 and more than one value occurs."""
    data = _load(subject, "train")
    images = data.fetch(torch.arange(min(_SAMPLES, len(data))))
    require(images.dtype == torch.uint8, f"images are {images.dtype}, not uint8")
    require(images.shape[1:] == data.shape, f"images have shape {tuple(images.shape[1:])}")
    require(int(images.max()) > int(images.min()), "all pixels are the same")


def loading_twice_gives_the_same(subject: Subject) -> None:
    """Order, labels, images and fingerprint do not change, and nothing global is drawn from."""
    first = _load(subject, "train")
    with watched_global_state() as changed:
        second = _load(subject, "train", key="a second loading")
    require_untouched(changed)
    require(torch.equal(first.labels, second.labels), "labels differ")
    require(torch.equal(first.ids, second.ids), "ids differ")
    some = torch.arange(min(_SAMPLES, len(first)))
    require(torch.equal(first.fetch(some), second.fetch(some)), "images differ")
    prints = [subject.create().fingerprint() for _ in range(2)]
    require(isinstance(prints[0], str), f"the fingerprint is {prints[0]!r}, no text")
    require(prints[0] == prints[1], f"fingerprints differ: {prints[0]!r} and {prints[1]!r}")


def splits_share_no_image(subject: Subject) -> None:
    """No test image is among the training images (looked at in a sample)."""
    train, test = _load(subject, "train"), _load(subject, "test")
    some = test.fetch(torch.arange(min(_SAMPLES, len(test))))
    wanted = {image.numpy().tobytes() for image in some}
    found = 0
    for start in range(0, len(train), 4096):
        chunk = train.fetch(torch.arange(start, min(start + 4096, len(train))))
        found += sum(image.numpy().tobytes() in wanted for image in chunk)
    # Real collections hold a few doubles; a split that leaks holds most.
    require(found <= len(some) // 10, f"{found} of {len(some)} test images are in training too")


CHECKS: Final[tuple[Callable[[Subject], None], ...]] = (
    loads_both_splits,
    splits_agree,
    images_are_bytes,
    loading_twice_gives_the_same,
    splits_share_no_image,
)


def _load(subject: Subject, split: str, key: str = "") -> ImageSet:
    def make() -> ImageSet:
        with tempfile.TemporaryDirectory() as cache, _no_connections() as attempts:
            try:
                data: ImageSet = subject.create().load(split, Path(cache))
            except InputError as error:
                raise CheckSkippedError(f"its images are not at hand: {error}") from error
            except Exception as error:
                if attempts:
                    raise CheckSkippedError("its images have to be downloaded first") from error
                raise
        return data

    return subject.once(f"loading {split} {key}".strip(), make)


@contextlib.contextmanager
def _no_connections() -> Iterator[list[Any]]:
    attempts: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        attempts.append(arguments)
        raise OSError("conformance checks make no connections")

    with (
        mock.patch.object(socket, "getaddrinfo", refuse),
        mock.patch.object(socket.socket, "connect", refuse),
    ):
        yield attempts
