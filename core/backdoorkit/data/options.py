"""Options of the data sets and of how a run splits them; imports no torch."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - read at runtime, where the options are made
from typing import Literal

import attrs

from backdoorkit.hooks.options import option

__all__ = [
    "DataOptions",
    "DigitsOptions",
    "DownloadOptions",
    "FolderOptions",
    "GivenImagesOptions",
    "NoImagesOptions",
    "TrafficSignOptions",
]


@attrs.frozen(kw_only=True)
class DataOptions:
    """Which images a run uses, and how many the defender has."""

    train_size: int | None = option(
        None,
        ge=1,
        help="Train on this many images, drawn class by class from the training split. Default: "
        "all that the reserve leaves.",
    )
    test_size: int | None = option(
        None,
        ge=1,
        help="Test on this many images, drawn class by class from the test split. Default: all.",
    )
    reserve_ratio: float = option(
        0.05,
        ge=0,
        le=1,
        help="Size of the defender's clean reserve as a share of the training split (of "
        "train_size, where that is given).",
    )
    reserve_size: int | None = option(
        None, ge=0, help="Size of the clean reserve in images, instead of reserve_ratio."
    )
    reserve_overlap: bool = option(
        False,
        help="Draw the reserve from the images that the victim trains on (their clean versions), "
        "as some papers do. Default: no image is in both.",
    )


@attrs.frozen(kw_only=True)
class DigitsOptions:
    """Form of the handwritten digits."""

    size: int = option(8, choices=(8, 16, 32), help="Side in pixels; above 8, enlarged smoothly.")
    channels: int = option(1, choices=(1, 3), help="1 is grey; 3 repeats grey as red, green, blue.")


@attrs.frozen(kw_only=True)
class DownloadOptions:
    """Where the files of a well-known data set are."""

    root: Path | None = option(
        None, help="Folder that holds the files. Default: the run store's cache."
    )
    download: bool = option(False, help="Fetch the files into the folder where they are missing.")


@attrs.frozen(kw_only=True)
class TrafficSignOptions(DownloadOptions):
    """GTSRB's photographs differ in size."""

    size: int = option(32, ge=1, help="Side in pixels that the photographs are stretched to.")


@attrs.frozen(kw_only=True)
class FolderOptions:
    """A folder of class folders."""

    path: Path = option(
        help="Folder with one folder of pictures per class, or with train and test folders that "
        "hold those."
    )
    size: int | None = option(
        None, ge=1, help="Side in pixels. Default: as they are, and all must have one size."
    )
    fit: Literal["crop", "stretch"] = option(
        "crop",
        help="How a picture that is not square gets its size: cut in the middle, or stretched.",
    )
    channels: int = option(3, choices=(1, 3), help="3 makes every picture RGB, 1 makes it grey.")
    test_ratio: float = option(
        0.2,
        gt=0,
        lt=1,
        help="Share of each class that is the test split, where the folder has none.",
    )
    streaming: Literal["auto", "always", "never"] = option(
        "auto",
        help="Read the pictures for every batch instead of keeping them in memory; auto does so "
        "where they would take more than a quarter of the free memory.",
    )


@attrs.frozen(kw_only=True)
class GivenImagesOptions:
    """A few pictures that belong to a model somebody was handed."""

    path: Path = option(
        help="Folder of pictures, or of one folder of pictures per class. All of them are in both "
        "splits."
    )
    num_classes: int = option(ge=2, help="Classes K of the model.")
    labels: Path | None = option(
        None, help="CSV file without a header, with lines FILE,LABEL; FILE is relative to path."
    )
    class_names: tuple[str, ...] = option(
        (), help="Names of the class folders in the order of the model's classes 0, 1, 2..."
    )
    size: int | None = option(
        None, ge=1, help="Side in pixels. Default: as they are, and all must have one size."
    )
    fit: Literal["crop", "stretch"] = option(
        "crop",
        help="How a picture that is not square gets its size: cut in the middle, or stretched.",
    )
    channels: int = option(3, choices=(1, 3), help="3 for RGB, 1 for grey.")
    convert: bool = option(
        False,
        help="Bring grey pictures to RGB, or coloured ones to grey, where channels ask for it. "
        "Default: refuse them.",
    )

    def __attrs_post_init__(self) -> None:
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"class_names must have one name for each of {self.num_classes} classes, not "
                f"{len(self.class_names)}"
            )
        if self.class_names and self.labels is not None:
            raise ValueError("set either labels or class_names, not both")


@attrs.frozen(kw_only=True)
class NoImagesOptions:
    """The form of images that nobody has given."""

    num_classes: int = option(ge=2, help="Classes K of the model.")
    size: int = option(ge=1, help="Side in pixels of the images that the model takes.")
    channels: int = option(3, choices=(1, 3), help="3 for RGB, 1 for grey.")
