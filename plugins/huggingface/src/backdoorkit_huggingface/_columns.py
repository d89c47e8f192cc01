"""Which columns hold pictures and classes, and what the classes are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets.features import ClassLabel, Features, Image, Value
from torch import Tensor

from backdoorkit.api import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from datasets.arrow_dataset import Dataset

__all__ = ["find_image_column", "find_label_column", "read_class_names", "read_labels"]


def find_image_column(features: Features, wanted: str | None) -> str:
    """The column of pictures.

    Raises :class:`InputError` where ``wanted`` is none, or where there is not exactly one.
    """
    typed = [name for name, kind in features.items() if isinstance(kind, Image)]
    plain = [name for name, kind in features.items() if _holds_files(kind)]
    return _one(features, wanted, typed or plain, plain + typed, "pictures", "image_column")


def find_label_column(features: Features, wanted: str | None) -> str:
    """The column of classes: named classes before numbers, numbers before words.

    Raises :class:`InputError` where ``wanted`` is none, or where there is not exactly one.
    """
    named = [name for name, kind in features.items() if isinstance(kind, ClassLabel)]
    numbers = [name for name, kind in features.items() if _is_value(kind, ("int", "uint"))]
    words = [name for name, kind in features.items() if _is_value(kind, ("string", "large_string"))]
    found = named or numbers or words
    return _one(features, wanted, found, named + numbers + words, "classes", "label_column")


def read_class_names(
    rows: Dataset, column: str, *, otherwise: tuple[str, ...] | None = None
) -> tuple[str, ...]:
    """Names of the classes: those the table gives, else ``otherwise``, else what is found in it."""
    kind = rows.features[column]
    if isinstance(kind, ClassLabel):
        return tuple(kind.names)
    if otherwise is not None:
        return otherwise
    values = _values(rows, column)
    if values.dtype.kind in "iu":
        return tuple(str(number) for number in range(int(values.max()) + 1))
    return tuple(sorted({str(value) for value in values}))


def read_labels(rows: Dataset, column: str, class_names: tuple[str, ...]) -> Tensor:
    """int64, N: each row's class among ``class_names``."""
    values = _values(rows, column)
    if values.dtype.kind not in "iu":
        numbers = {name: number for number, name in enumerate(class_names)}
        unknown = sorted({str(value) for value in values} - numbers.keys())
        if unknown:
            raise InputError(
                f"huggingface: column {column!r} has classes that the training split lacks: "
                f"{', '.join(unknown[:5])}"
            )
        return torch.tensor([numbers[str(value)] for value in values], dtype=torch.int64)
    labels = torch.from_numpy(values.astype(np.int64))
    lowest, largest = int(labels.min()), int(labels.max())
    if lowest < 0 or largest >= len(class_names):
        advice = "; this split is published without its labels" if lowest == largest == -1 else ""
        raise InputError(
            f"huggingface: labels in column {column!r} go from {lowest} to {largest}, and there "
            f"are {len(class_names)} classes, 0 to {len(class_names) - 1}{advice}"
        )
    return labels


def _values(rows: Dataset, column: str) -> np.ndarray[Any, Any]:
    values = rows.select_columns([column]).with_format("arrow")[:][column]
    if values.null_count:
        raise InputError(
            f"huggingface: {values.null_count} of {len(values)} rows have no class in column "
            f"{column!r}; every picture needs one"
        )
    return values.to_numpy()  # type: ignore[no-any-return]


def _one(
    features: Features,
    wanted: str | None,
    found: list[str],
    possible: Iterable[str],
    what: str,
    option: str,
) -> str:
    columns = ", ".join(features)
    if wanted is not None:
        if wanted in possible:
            return wanted
        why = "holds no" if wanted in features else "is not there for"
        raise InputError(
            f"huggingface: column {wanted!r} {why} {what}; set {option} to one of: {columns}"
        )
    if len(found) != 1:
        count = "several columns could hold" if found else "no column holds"
        listed = ", ".join(found) if found else columns
        raise InputError(f"huggingface: {count} the {what} ({listed}); set {option}")
    return found[0]


def _holds_files(kind: Any) -> bool:
    """Bytes, or bytes with a path, as tables without the library's remarks have them."""
    if isinstance(kind, dict):
        return set(kind) == {"bytes", "path"}
    return _is_value(kind, ("binary", "large_binary"))


def _is_value(kind: Any, types: tuple[str, ...]) -> bool:
    return isinstance(kind, Value) and kind.dtype.rstrip("0123456789") in types
