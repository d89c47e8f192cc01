"""Pictures beside a model that somebody was handed: few, and with labels as far as known."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Final

import torch

from backdoorkit.contracts import Dataset
from backdoorkit.data._folder import EXTENSIONS
from backdoorkit.data.contents import contents_digest
from backdoorkit.data.images import ImageSet
from backdoorkit.data.loading import PictureForm, StreamedFiles, picture_modes, picture_sizes
from backdoorkit.data.options import GivenImagesOptions, NoImagesOptions
from backdoorkit.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

__all__ = ["GivenImages", "NoImages", "class_folders", "pictures_below"]

_GREY: Final = frozenset({"1", "L", "LA", "La"})
#: Files of labels are small; what is larger is something else.
_LARGEST_LABELS: Final = 64 << 20


class GivenImages(Dataset[GivenImagesOptions]):
    """Reads ``path/*`` or ``path/<class>/*``; every picture is in both splits.

    A class folder bears its label's number, or a name of ``class_names``; otherwise there must be
    one for each class of the model, and they are numbered in the order of their names. Pictures
    without folders get their labels from the file ``labels``; without it all have label 0, and no
    accuracy on them means anything.
    """

    def load(self, split: str, cache: Path) -> ImageSet:
        """All pictures, whatever the split."""
        del split, cache
        paths = pictures_below(self._root)
        labels = self._labels(paths)
        if int(labels.max()) >= self.config.num_classes:
            raise InputError(
                f"{self._root} has pictures of class {int(labels.max())}, and the model's "
                f"{self.config.num_classes} classes are 0 to {self.config.num_classes - 1}"
            )
        return ImageSet.from_source(
            StreamedFiles(paths, self._form(paths)),
            labels,
            class_names=self.config.class_names or _numbers(self.config.num_classes),
            streaming="auto",
        )

    def fingerprint(self) -> str:
        """Names and contents of all pictures."""
        found = pictures_below(self._root)
        return contents_digest({path.relative_to(self._root).as_posix(): path for path in found})

    @property
    def _root(self) -> Path:
        return self.config.path.expanduser()

    # -- labels ------------------------------------------------------------------------------------

    def _labels(self, paths: list[Path]) -> Tensor:
        if self.config.labels is not None:
            return self._listed_labels(paths, self.config.labels)
        folders = class_folders(self._root)
        if not folders:
            return torch.zeros(len(paths), dtype=torch.int64)
        loose = next((path for path in paths if path.parent == self._root), None)
        if loose is not None:
            raise InputError(
                f"{self._root} has class folders, and {loose.name} lies beside them; move it into "
                "its class's folder"
            )
        numbers = self._numbered(folders)
        tops = [path.relative_to(self._root).parts[0] for path in paths]
        return torch.tensor([numbers[top] for top in tops], dtype=torch.int64)

    def _numbered(self, folders: list[str]) -> dict[str, int]:
        """The label of each class folder."""
        classes, names = self.config.num_classes, self.config.class_names
        if names:
            if unknown := [folder for folder in folders if folder not in names]:
                raise InputError(
                    f"{self._root} has a class folder {unknown[0]!r}, which class_names do not "
                    f"name: {', '.join(names)}"
                )
            return {name: label for label, name in enumerate(names) if name in folders}
        if all(folder.isdecimal() for folder in folders):
            numbers = {folder: int(folder) for folder in folders}
            if len(set(numbers.values())) == len(numbers):
                return numbers
        if len(folders) != classes:
            raise InputError(
                f"{self._root} has {len(folders)} class folders, and the model has {classes} "
                "classes; name the folders by the classes' numbers (0, 1, 2...), or give "
                "their names in order (--class-names)"
            )
        return {folder: label for label, folder in enumerate(folders)}

    def _listed_labels(self, paths: list[Path], file: Path) -> Tensor:
        try:
            if file.stat().st_size > _LARGEST_LABELS:
                raise InputError(f"labels {file} is too large for a list of labels")
            with file.open(newline="", encoding="utf-8") as stream:
                rows = [row for row in csv.reader(stream) if row]
            listed = {name.strip(): int(label) for name, label in rows}
        except OSError as error:
            raise InputError(f"labels {file} cannot be read: {error.strerror}") from None
        except (ValueError, csv.Error):
            raise InputError(
                f"labels {file} must be CSV with lines such as 'picture.png,3'; a line is not"
            ) from None
        names = [path.relative_to(self._root).as_posix() for path in paths]
        if missing := [name for name in names if name not in listed]:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise InputError(f"labels {file} has no line for {missing[0]}{more}")
        if any(listed[name] < 0 for name in names):
            raise InputError(f"labels {file} has labels below 0; classes are 0, 1, 2...")
        return torch.tensor([listed[name] for name in names], dtype=torch.int64)

    # -- pixels ------------------------------------------------------------------------------------

    def _form(self, paths: list[Path]) -> PictureForm:
        config = self.config
        if not config.convert:
            self._refuse_other_colours(paths)
        if config.size is not None:
            return PictureForm(config.channels, config.size, config.size, config.fit)
        sizes = picture_sizes(paths)
        other = next((index for index, size in enumerate(sizes) if size != sizes[0]), None)
        if other is not None:
            raise InputError(
                f"the pictures in {self._root} differ in size: {paths[0].name} is "
                f"{sizes[0][0]}x{sizes[0][1]} pixels, {paths[other].name} is "
                f"{sizes[other][0]}x{sizes[other][1]}; give the size (in pixels) that the model "
                "takes (--size)"
            )
        width, height = sizes[0]
        return PictureForm(config.channels, height, width)

    def _refuse_other_colours(self, paths: list[Path]) -> None:
        grey = [mode in _GREY for mode in picture_modes(paths)]
        if self.config.channels == 3 and all(grey):
            fault = "are grey, and the model takes images of 3 channels"
        elif self.config.channels == 1 and not all(grey):
            fault = f"are not all grey ({paths[grey.index(False)].name}), and the model takes grey"
        else:
            return
        raise InputError(
            f"the pictures in {self._root} {fault}; give those that it was made for, or have them "
            "converted (--convert)"
        )


class NoImages(Dataset[NoImagesOptions]):
    """One uniform grey image per class, which no method is given that declares no samples."""

    def load(self, split: str, cache: Path) -> ImageSet:
        """The same for every split."""
        del split, cache
        config = self.config
        shape = (config.num_classes, config.channels, config.size, config.size)
        return ImageSet.from_tensors(
            torch.full(shape, 128, dtype=torch.uint8),
            torch.arange(config.num_classes),
            class_names=_numbers(config.num_classes),
        )

    def fingerprint(self) -> str:
        """The options say it all."""
        return ""


def pictures_below(folder: Path) -> list[Path]:
    """All pictures in ``folder`` and its folders, in the order of their names.

    Raises
    ------
    InputError
        where there is no such folder, or no picture in it.

    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a folder of pictures")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not found:
        raise InputError(f"{folder} holds no pictures ({', '.join(sorted(EXTENSIONS))})")
    return found


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in ``folder``, in order."""
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _numbers(classes: int) -> tuple[str, ...]:
    return tuple(map(str, range(classes)))
