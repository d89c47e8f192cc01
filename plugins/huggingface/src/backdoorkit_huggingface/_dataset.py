"""Hugging Face data sets as image sets."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from backdoorkit.api import Dataset, ImageSet, InputError
from backdoorkit_huggingface import HuggingFaceOptions
from backdoorkit_huggingface._decoded import load_decoded, save_decoded
from backdoorkit_huggingface._files import files_digest, is_local, local_files, shares_one_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from datasets.arrow_dataset import Dataset as Table
    from torch import Tensor

    from backdoorkit_huggingface._pictures import Form

__all__ = ["HuggingFaceImages"]


class HuggingFaceImages(Dataset[HuggingFaceOptions]):
    """Opens with the datasets library (Lhoest et al., EMNLP 2021), decodes with Pillow.

    Decoded images are kept below the cache, under a key made of the files and the options; then
    a second run neither imports the library nor decodes anything.
    """

    def load(self, split: str, cache: Path) -> ImageSet:
        """Images of ``split``, in memory where they fit."""
        kept = self._decoded_path(split, cache)
        if kept is not None and (found := load_decoded(kept)) is not None:
            return found
        data = self._opened(split, cache)
        if kept is not None and not data.is_streamed:
            save_decoded(kept, data)
        return data

    def fingerprint(self) -> str:
        """Names and contents of local files; name and revision on the hub."""
        config = self.config
        if is_local(config):
            return files_digest(config, ("train", "test"))
        return f"{config.path}@{config.revision or 'latest'}"

    def _opened(self, split: str, cache: Path) -> ImageSet:
        from backdoorkit_huggingface import _columns as columns
        from backdoorkit_huggingface._pictures import ColumnOfPictures

        config = self.config
        train = self._rows("train", cache)
        # Training says what test images look like and which classes there are.
        rows = train if split == "train" or shares_one_file(config) else self._rows("test", cache)
        image_column = columns.find_image_column(train.features, config.image_column)
        label_column = columns.find_label_column(train.features, config.label_column)
        names = columns.read_class_names(train, label_column)
        if missing := {image_column, label_column} - set(rows.features):
            raise InputError(
                f"huggingface: the {split} split lacks the column {sorted(missing)[0]!r}"
            )
        if columns.read_class_names(rows, label_column, otherwise=names) != names:
            raise InputError(
                f"huggingface: training and test split name the classes of column "
                f"{label_column!r} differently; the numbers would not mean the same"
            )
        labels = columns.read_labels(rows, label_column, names)
        if shares_one_file(config):
            chosen = _own_split(labels, config.test_ratio, split)
            rows, labels = rows.select(chosen.tolist()), labels[chosen]
        folders = _download_folders(cache)
        form = self._form(_files_only(train, image_column), image_column, folders)
        source = ColumnOfPictures(_files_only(rows, image_column), image_column, form, folders)
        return ImageSet.from_source(source, labels, class_names=names, streaming=config.streaming)

    def _rows(self, split: str, cache: Path) -> Table:
        from datasets.load import load_dataset

        config = self.config
        options: dict[str, Any] = {"cache_dir": str(cache / "huggingface")}
        if is_local(config) or config.path is None:
            files = [str(file) for file in local_files(config, split)]
            options |= {"path": "parquet", "data_files": {split: files}, "split": split}
            return _checked(functools.partial(load_dataset, **options), files[0])
        wanted = config.train_split if split == "train" else config.test_split
        options |= {"path": config.path, "name": config.subset, "revision": config.revision}
        return _checked(
            functools.partial(load_dataset, split=wanted, **options),
            f"{config.path} (split {wanted!r})",
        )

    def _form(self, rows: Table, column: str, folders: tuple[Path, ...]) -> Form:
        from backdoorkit_huggingface._pictures import ColumnOfPictures, Form, size_of

        config = self.config
        if config.size is not None:
            return Form(config.channels, config.size, config.size, config.fit)
        first = ColumnOfPictures(rows, column, Form(config.channels, 1, 1), folders).files([0])
        width, height = size_of(first[0], "row 0")
        return Form(config.channels, height, width)

    def _decoded_path(self, split: str, cache: Path) -> Path | None:
        """Where decoded images are kept; None where nothing tells that the source has changed."""
        config = self.config
        is_fixed = is_local(config) or re.fullmatch("[0-9a-f]{40}", config.revision or "")
        if not config.keep_decoded or config.streaming == "always" or not is_fixed:
            return None
        source = f"{config.path}@{config.revision}"
        if is_local(config):
            # The training split decides on form and classes of both.
            source = files_digest(config, dict.fromkeys(("train", split)))
        words = "\x1f".join((source, repr(config), split))
        key = hashlib.sha256(words.encode()).hexdigest()
        return cache / "huggingface-decoded" / f"{key}.safetensors"


def _files_only(rows: Table, column: str) -> Table:
    """Only the pictures, as files and not decoded."""
    from datasets.features import Image

    pictures = rows.select_columns([column]).cast_column(column, Image(decode=False))
    files: Table = pictures.with_format("arrow")
    return files


def _checked(load: Callable[[], Any], what: str) -> Table:
    # The library, its readers and the network raise whatever they like.
    try:
        with _quietly():
            rows: Table = load()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"huggingface: {what} cannot be opened: {reason}") from error
    if len(rows) == 0:
        raise InputError(f"huggingface: {what} holds no rows")
    return rows


def _own_split(labels: Tensor, ratio: float, split: str) -> Tensor:
    """Positions of one split of a single file: evenly spread over each class, without chance."""
    numbers = labels.numpy()
    order = np.argsort(numbers, kind="stable")
    sizes = np.bincount(numbers)
    ranks = np.empty_like(numbers)
    ranks[order] = np.arange(len(numbers)) - (np.cumsum(sizes) - sizes)[numbers[order]]
    quotas = np.floor(sizes * ratio + 0.5).astype(np.int64)[numbers]
    size = sizes[numbers]
    is_test = (ranks + 1) * quotas // size > ranks * quotas // size
    chosen = np.flatnonzero(is_test if split == "test" else ~is_test)
    if len(chosen) == 0:
        raise InputError(
            f"huggingface: with test_ratio {ratio:g} none of the {len(labels)} rows is left for "
            f"the {split} split"
        )
    return torch.from_numpy(chosen)


def _download_folders(cache: Path) -> tuple[Path, ...]:
    """Where the library puts what it fetches."""
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    return cache / "huggingface", Path(config.HF_DATASETS_CACHE), Path(HF_HUB_CACHE)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the library's own progress bars; the run shows its own."""
    from datasets.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    was_quiet = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not was_quiet:
            enable_progress_bars()
