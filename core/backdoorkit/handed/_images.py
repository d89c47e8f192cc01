"""The images beside a model: where they are, whether their labels are known, and what is wrong."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch

from backdoorkit.data._given import class_folders, pictures_below
from backdoorkit.errors import InputError, UnknownNameError
from backdoorkit.hooks.info import Kind
from backdoorkit.hooks.registry import resolve_config
from backdoorkit.pipeline.keys import content_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from backdoorkit.data.images import ImageSet
    from backdoorkit.handed._model import HandedModel
    from backdoorkit.handed.request import Request
    from backdoorkit.hooks.registry import Registry

__all__ = ["Images", "choose_images", "load_images", "write_labels"]

_PARQUET: Final = "huggingface"


@attrs.frozen(kw_only=True)
class Images:
    """Which images a recipe takes."""

    #: the data set's table of the recipe, without how it is split
    table: Mapping[str, Any]
    are_labelled: bool
    #: in words
    source: str

    @property
    def is_nothing(self) -> bool:
        """No images were given."""
        return bool(self.table["name"] == "no-images")

    def recipe_table(self, request: Request, count: int) -> dict[str, Any]:
        """The table, split so that the defender has all ``count`` images but those held out."""
        table = {**self.table, "reserve_overlap": True}
        if request.images is not None and not self.is_nothing:
            table["train_size"] = count
        if request.held_out and not self.is_nothing:
            return {**table, "reserve_size": count - max(1, round(request.held_out * count))}
        return {**table, "reserve_ratio": 1.0}


def choose_images(request: Request, model: HandedModel, registry: Registry) -> Images:
    """What ``--data`` means.

    Raises
    ------
    InputError
        where it is neither a folder, nor Parquet files, nor the name of a data set.

    """
    if request.data is None:
        return _nothing(request, model)
    path = Path(request.data).expanduser()
    is_pattern = "*" in request.data
    if path.suffix == ".parquet" or is_pattern or (path.is_dir() and any(path.glob("*.parquet"))):
        return _parquet(path / "*.parquet" if path.is_dir() else path, request, model, registry)
    if path.is_dir():
        return _folder(path, request, model)
    if path.exists():
        raise InputError(
            f"{path} is a file; give a folder of pictures, a .parquet file or the name of a data "
            "set"
        )
    try:
        registry.find(request.data, Kind.DATASET)
    except UnknownNameError as error:
        raise InputError(f"there is no folder {request.data!r}, and {error}") from None
    named: dict[str, Any] = {"name": request.data}
    if request.size is not None:
        named["size"] = request.size
    return Images(table=named, are_labelled=True, source=f"data set {request.data}")


def _nothing(request: Request, model: HandedModel) -> Images:
    size = request.size or (model.image_shape[1] if model.image_shape else None)
    if size is None:
        raise InputError(
            "no images are given, and the weights do not tell the size of those that the model "
            "takes; give --size (in pixels), or --data"
        )
    table = {
        "name": "no-images",
        "num_classes": model.num_classes,
        "size": size,
        "channels": model.channels,
    }
    return Images(table=table, are_labelled=False, source="none")


def _folder(path: Path, request: Request, model: HandedModel) -> Images:
    table: dict[str, Any] = {
        "name": "given-images",
        "path": str(path.absolute()),
        "num_classes": model.num_classes,
        "channels": model.channels,
        "convert": request.convert,
    }
    if request.size is not None:
        table["size"] = request.size
    if request.class_names:
        table["class_names"] = list(request.class_names)
    if request.labels is not None:
        table["labels"] = str(request.labels.absolute())
    labelled = request.labels is not None or bool(class_folders(path))
    return Images(table=table, are_labelled=labelled, source=f"folder {path}")


def _parquet(files: Path, request: Request, model: HandedModel, registry: Registry) -> Images:
    registry.find(_PARQUET, Kind.DATASET)
    where = str(files.absolute())
    table: dict[str, Any] = {
        "name": _PARQUET,
        "train_files": where,
        "test_files": where,
        "channels": model.channels,
    }
    if request.size is not None:
        table["size"] = request.size
    return Images(table=table, are_labelled=True, source=f"Parquet files {files}")


def load_images(
    images: Images, request: Request, model: HandedModel, registry: Registry, cache: Path
) -> ImageSet:
    """The images, once they are seen to be of the model's form.

    Raises
    ------
    InputError
        in one line: they cannot be read, are too few, or of other classes or channels.

    """
    options = dict(images.table)
    method = registry.find(options.pop("name"), Kind.DATASET)
    loaded: ImageSet = registry.create(method, resolve_config(method, options, "data")).load(
        "train", cache
    )
    if loaded.num_classes != model.num_classes:
        raise InputError(
            f"the images ({images.source}) have {loaded.num_classes} classes, and the model has "
            f"{model.num_classes}; give those that it was made for"
        )
    if loaded.shape[0] != model.channels:
        raise InputError(
            f"the images ({images.source}) have {loaded.shape[0]} channels, and the model takes "
            f"{model.channels}; give those that it was made for"
        )
    if model.image_shape is not None and loaded.shape != model.image_shape:
        shown = [" x ".join(map(str, shape)) for shape in (loaded.shape, model.image_shape)]
        raise InputError(
            f"the images are {shown[0]}, and {model.path.name} says that it takes {shown[1]}; "
            f"give --size {model.image_shape[1]}"
        )
    count = len(loaded) if request.images is None else request.images
    if count > len(loaded):
        raise InputError(f"{count} images are wanted, and there are {len(loaded)}; lower --images")
    if count < model.num_classes:
        raise InputError(
            f"{count} images are too few for {model.num_classes} classes; give at least one per "
            "class, better ten"
        )
    return loaded


def write_labels(images: Images, labels: Tensor, cache: Path) -> Images:
    """The same images with ``labels`` (int64, N) by means of a file in ``cache``."""
    root = Path(images.table["path"])
    names = [path.relative_to(root).as_posix() for path in pictures_below(root)]
    rows = list(zip(names, torch.as_tensor(labels).tolist(), strict=True))
    # The name follows the content, so that the same images give the same recipe.
    file = cache / "labels" / f"{content_key(root=str(root), rows=rows)[:16]}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return attrs.evolve(images, table={**images.table, "labels": str(file)})
