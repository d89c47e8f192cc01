"""Hugging Face image data sets, from the hub or from Parquet files on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from backdoorkit import MethodInfo, Stage, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["HuggingFaceOptions", "backdoorkit_datasets"]


@attrs.frozen(kw_only=True)
class HuggingFaceOptions:
    """Where the images are, in which columns, and which form they get."""

    path: str | None = option(
        None,
        help="Name on the hub (owner/name), a folder of Parquet files whose names begin with their "
        "split, or one Parquet file, which is then split.",
    )
    train_files: str | None = option(
        None, help="Parquet files of the training split, with * and ** as wildcards."
    )
    test_files: str | None = option(
        None, help="Parquet files of the test split, with * and ** as wildcards."
    )
    subset: str | None = option(None, help="Configuration on the hub, where there are several.")
    revision: str | None = option(
        None, help="Commit on the hub. Without one, later changes there go unnoticed by the store."
    )
    train_split: str = option("train", help="What the source calls its training split.")
    test_split: str = option("test", help="What the source calls its test split.")
    test_ratio: float = option(
        0.2, gt=0, lt=1, help="Share of each class that is the test split of a single file."
    )
    image_column: str | None = option(
        None, help="Column of the pictures. Default: the only one of that kind."
    )
    label_column: str | None = option(
        None, help="Column of the classes. Default: the only one of that kind."
    )
    size: int | None = option(
        None, ge=1, help="Side in pixels. Default: as they are, and all must have one size."
    )
    fit: Literal["crop", "stretch"] = option(
        "crop",
        help="How a picture that is not square gets its size: cut in the middle, or stretched.",
    )
    channels: int = option(3, choices=(1, 3), help="3 makes every picture RGB, 1 makes it grey.")
    streaming: Literal["auto", "always", "never"] = option(
        "auto",
        help="Decode the pictures for every batch instead of keeping them in memory; auto does so "
        "where they would take more than a quarter of the free memory.",
    )
    keep_decoded: bool = option(
        True, help="Keep decoded pictures in the cache, so that the next run opens them at once."
    )

    def __attrs_post_init__(self) -> None:
        files = (self.train_files, self.test_files)
        if self.path is None and None in files:
            raise ValueError("set path, or both train_files and test_files")
        if self.path is not None and files != (None, None):
            raise ValueError("set either path, or train_files and test_files, not both")


@hookimpl
def backdoorkit_datasets() -> Iterable[MethodInfo]:
    """Any image data set that the datasets library opens."""
    yield MethodInfo(
        name="huggingface",
        summary="Any Hugging Face image data set, from the hub or from Parquet files.",
        reference="Lhoest et al.: Datasets, a Community Library for Natural Language Processing, "
        "EMNLP 2021",
        implementation="backdoorkit_huggingface._dataset:HuggingFaceImages",
        config=HuggingFaceOptions,
        stage=Stage.DATA,
    )
