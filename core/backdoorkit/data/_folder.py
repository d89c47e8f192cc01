"""Pictures of one's own: a folder of class folders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from backdoorkit.contracts import Dataset
from backdoorkit.data.contents import contents_digest
from backdoorkit.data.images import ImageSet
from backdoorkit.data.loading import PictureForm, StreamedFiles, picture_sizes
from backdoorkit.data.options import FolderOptions
from backdoorkit.data.splits import spread_positions
from backdoorkit.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

__all__ = ["EXTENSIONS", "ImageFolder"]

EXTENSIONS: Final = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
)
_TEST_NAMES: Final = ("test", "val", "validation")


class ImageFolder(Dataset[FolderOptions]):
    """Reads ``path/<class>/*`` or ``path/train/<class>/*`` with ``path/test/<class>/*``.

    Classes are numbered in the order of their folders' names, pictures in the order of theirs.
    Without a test folder, ``test_ratio`` of each class is the test split, always the same ones.
    """

    def load(self, split: str, cache: Path) -> ImageSet:
        """Images of ``split``, in memory or streamed as the options say."""
        del cache
        train, test = self._folders()
        classes = _classes(train)
        paths, labels = _pictures(train if split == "train" or test is None else test, classes)
        form = self._form(train, paths, classes)
        if test is None:
            chosen = self._own_split(split, labels)
            paths, labels = [paths[position] for position in chosen.tolist()], labels[chosen]
        return ImageSet.from_source(
            StreamedFiles(paths, form),
            labels,
            class_names=classes,
            streaming=self.config.streaming,
        )

    def fingerprint(self) -> str:
        """Names and contents of all pictures."""
        return contents_digest(
            {
                path.relative_to(self._root).as_posix(): path
                for folder in self._folders()
                if folder is not None
                for path in _pictures(folder, _classes(folder))[0]
            }
        )

    @property
    def _root(self) -> Path:
        return self.config.path.expanduser()

    def _folders(self) -> tuple[Path, Path | None]:
        root = self._root
        if not root.is_dir():
            raise InputError(f"image-folder: {root} is not a folder; set path to one")
        tests = [root / name for name in _TEST_NAMES if (root / name).is_dir()]
        if not (root / "train").is_dir():
            return root, None
        if not tests:
            raise InputError(
                f"image-folder: {root} has a train folder and none called "
                f"{' or '.join(_TEST_NAMES)}; add one, or set path to the train folder to split it"
            )
        return root / "train", tests[0]

    def _form(self, train: Path, paths: list[Path], classes: list[str]) -> PictureForm:
        config = self.config
        if config.size is not None:
            return PictureForm(config.channels, config.size, config.size, config.fit)
        # The training pictures say which size is meant, also for the test split.
        first = next(iter(_pictures_of(train / classes[0])))
        width, height = picture_sizes([first])[0]
        for path, size in zip(paths, picture_sizes(paths), strict=True):
            if size != (width, height):
                raise InputError(
                    f"image-folder: pictures differ in size: {first} is {width}x{height} pixels, "
                    f"{path} is {size[0]}x{size[1]}; set size to bring all to one size"
                )
        return PictureForm(config.channels, height, width)

    def _own_split(self, split: str, labels: Tensor) -> Tensor:
        count = max(1, round(self.config.test_ratio * len(labels)))
        is_test = torch.zeros(len(labels), dtype=torch.bool)
        is_test[spread_positions(labels, count)] = True
        chosen = is_test if split == "test" else ~is_test
        if not bool(chosen.any()):
            raise InputError(
                f"image-folder: with test_ratio {self.config.test_ratio:g} none of the "
                f"{len(labels)} pictures is left for the {split} split; add pictures"
            )
        return chosen.nonzero().flatten()


def _classes(folder: Path) -> list[str]:
    classes = sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if not classes:
        raise InputError(f"image-folder: {folder} holds no class folders; make one for each class")
    return classes


def _pictures(folder: Path, classes: list[str]) -> tuple[list[Path], Tensor]:
    """All pictures below ``folder`` and the number of each one's class among ``classes``."""
    unknown = sorted(set(_classes(folder)) - set(classes))
    if unknown:
        raise InputError(
            f"image-folder: {folder} has class folders that the training split lacks: "
            f"{', '.join(unknown)}"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        # A class may be missing from the test split; a folder that is there must hold pictures.
        if (folder / name).is_dir():
            found = _pictures_of(folder / name)
            paths += found
            labels += [label] * len(found)
    return paths, torch.tensor(labels, dtype=torch.int64)


def _pictures_of(folder: Path) -> list[Path]:
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise InputError(
            f"image-folder: {folder} holds no pictures ({', '.join(sorted(EXTENSIONS))})"
        )
    return found
