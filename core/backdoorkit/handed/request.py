"""What a person says about a model that was handed over. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path  # noqa: TC003 - part of the classes' types
from typing import Any, TypeAlias

import attrs

__all__ = ["CalibrationRequest", "Request"]

#: Changes the plain values of a recipe in place, as ``--set`` does.
Adjust: TypeAlias = Callable[[dict[str, Any]], None]


def _nothing(values: dict[str, Any]) -> None:
    del values


@attrs.frozen(kw_only=True)
class Request:
    """A model file, what is known about it, and what is to be done."""

    model: Path
    #: name of an architecture, or ``package.module:function``; None: told from the weights
    architecture: str | None = None
    #: folder of pictures, Parquet files, or name of a data set; None: no images
    data: str | None = None
    #: CSV file with the pictures' labels
    labels: Path | None = None
    #: the class folders' names in the order of the model's classes
    class_names: tuple[str, ...] = ()
    #: number of classes K; checked against the weights
    num_classes: int | None = None
    #: side in pixels to which pictures are brought
    size: int | None = None
    #: use this many of the images; None: all
    images: int | None = None
    #: share of the images that a repair does not see, on which its accuracy is measured
    held_out: float = 0.0
    #: bring grey pictures to RGB and the other way round
    convert: bool = False
    #: ``none``, ``imagenet``, ``data`` or ``mean/std``; None: what fits the labelled images best
    normalization: str | None = None
    #: names of detectors; empty: the usual one
    detectors: tuple[str, ...] = ()
    calibration: Path | None = None
    #: share of clean models that a calibrated threshold may flag
    false_alarm_rate: float = 0.05
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    adjust: Adjust = _nothing


@attrs.frozen(kw_only=True)
class CalibrationRequest:
    """How clean models are come by, and which detector's score is to be calibrated on them."""

    #: name of an architecture, or ``package.module:function``
    architecture: str | None = None
    data: str | None = None
    #: files of clean models; empty: train them
    files: tuple[Path, ...] = ()
    #: how many to train
    models: int = 20
    epochs: int | None = None
    detector: str | None = None
    #: first seed
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    #: a recipe's plain values below all that is given here, and where its paths start
    recipe: dict[str, Any] = attrs.field(factory=dict)
    recipe_folder: Path | None = None
    #: how the given files are read, beside their names
    request: Request | None = None
    adjust: Adjust = _nothing
