"""The field's usual data sets, through torchvision's readers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torchvision import datasets
from torchvision.datasets.utils import download_and_extract_archive

from backdoorkit.contracts import Dataset
from backdoorkit.data.images import ImageSet
from backdoorkit.data.loading import PictureForm, StreamedFiles
from backdoorkit.data.options import DownloadOptions, TrafficSignOptions
from backdoorkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "FashionMnist",
    "HouseNumbers",
    "Mnist",
    "TrafficSigns",
    "download_archive",
    "folder_of",
]


def folder_of(config: DownloadOptions, cache: Path) -> Path:
    """Where the files are, or would be downloaded to."""
    return cache / "torchvision" if config.root is None else config.root.expanduser()


def download_archive(
    name: str, config: DownloadOptions, root: Path, url: str, md5: str, wanted: Sequence[str]
) -> None:
    """Fetch an archive and unpack it below ``root``, where the options permit that.

    ``wanted`` are the folders that would have done.
    """
    if not config.download:
        raise _missing(name, f"{root} as {' or '.join(wanted)}")
    try:
        download_and_extract_archive(url, root, md5=md5)
    except (OSError, RuntimeError) as error:
        raise _not_fetched(name, error) from error


def _opened(name: str, config: DownloadOptions, root: Path, make: Callable[..., Any]) -> Any:
    """torchvision's reader, or one line on what is missing."""
    # Damaged files make the readers raise anything.
    try:
        return make(root=str(root), download=False)
    except Exception as error:
        if not config.download:
            raise _missing(name, root) from error
    root.mkdir(parents=True, exist_ok=True)
    try:
        return make(root=str(root), download=True)
    except Exception as error:
        raise _not_fetched(name, error) from error


def _missing(name: str, where: Path | str) -> InputError:
    return InputError(
        f"{name} is not in {where}, or is damaged there; set root to the folder that holds it, or "
        "set download to fetch it"
    )


def _not_fetched(name: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{name} could not be fetched: {reason}")


class _Official(Dataset[DownloadOptions]):
    """A data set whose files are always the same."""

    name: ClassVar[str]

    def fingerprint(self) -> str:
        """The official images, which do not change."""
        return f"{self.name}-official"


class Mnist(_Official):
    """Handwritten digits, 28x28 grey."""

    name = "mnist"
    reader: ClassVar[type[datasets.MNIST]] = datasets.MNIST
    class_names: ClassVar[tuple[str, ...]] = tuple("0123456789")

    def load(self, split: str, cache: Path) -> ImageSet:
        """Images of ``split``; 60,000 to train on, 10,000 to test."""

        def make(**options: Any) -> datasets.MNIST:
            return self.reader(train=split == "train", **options)

        data = _opened(self.name, self.config, folder_of(self.config, cache), make)
        return ImageSet.from_tensors(
            data.data.unsqueeze(1), data.targets.long(), class_names=self.class_names
        )


class FashionMnist(Mnist):
    """Articles of clothing, 28x28 grey."""

    name = "fashion-mnist"
    reader = datasets.FashionMNIST
    class_names = tuple(datasets.FashionMNIST.classes)


class HouseNumbers(_Official):
    """Digits on house fronts, 32x32 RGB; without the extra training images."""

    name = "svhn"

    def load(self, split: str, cache: Path) -> ImageSet:
        """Images of ``split``; 73,257 to train on, 26,032 to test."""

        def make(**options: Any) -> datasets.SVHN:
            return datasets.SVHN(split=split, **options)

        data = _opened(self.name, self.config, folder_of(self.config, cache), make)
        labels = torch.from_numpy(data.labels)
        return ImageSet.from_tensors(torch.from_numpy(data.data), labels, num_classes=10)


class TrafficSigns(Dataset[TrafficSignOptions]):
    """German traffic signs; photographs of 15 to 250 pixels, brought to one size."""

    def load(self, split: str, cache: Path) -> ImageSet:
        """Images of ``split``; 26,640 to train on, 12,630 to test."""

        def make(**options: Any) -> datasets.GTSRB:
            return datasets.GTSRB(split=split, **options)

        data = _opened("gtsrb", self.config, folder_of(self.config, cache), make)
        size = self.config.size
        paths = [Path(path) for path, _ in data._samples]
        labels = torch.tensor([label for _, label in data._samples], dtype=torch.int64)
        source = StreamedFiles(paths, PictureForm(3, size, size, fit="stretch"))
        return ImageSet.from_source(source, labels, num_classes=43)

    def fingerprint(self) -> str:
        """The official images, which do not change."""
        return "gtsrb-official"
