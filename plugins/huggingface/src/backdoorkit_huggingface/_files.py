"""Which Parquet files hold a split."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING

from backdoorkit.api import InputError, contents_digest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backdoorkit_huggingface import HuggingFaceOptions

__all__ = ["files_digest", "is_local", "local_files", "shares_one_file"]

_NAMES_SHOWN = 5


def is_local(config: HuggingFaceOptions) -> bool:
    """Whether the images are on disk; a path that does not exist is a name on the hub."""
    if config.path is None:
        return True
    path = Path(config.path).expanduser()
    # What can be no name on the hub is a mistyped path, not a question for the network.
    return path.exists() or path.is_absolute() or path.suffix == ".parquet" or _is_relative(path)


def shares_one_file(config: HuggingFaceOptions) -> bool:
    """Whether training and test images come from the same file."""
    return config.path is not None and Path(config.path).expanduser().is_file()


def local_files(config: HuggingFaceOptions, split: str) -> list[Path]:
    """The files of ``split`` (``"train"`` or ``"test"``), sorted.

    Raises :class:`InputError` where there are none.
    """
    if config.path is None:
        option = f"{split}_files"
        pattern: str = getattr(config, option)
        found = sorted(map(Path, glob.glob(str(Path(pattern).expanduser()), recursive=True)))
        if not found:
            place = "" if Path(pattern).expanduser().is_absolute() else f" in {Path.cwd()}"
            raise InputError(
                f"huggingface: no file matches {option} {pattern!r}{place}; set it to where the "
                "files are, or choose another data set"
            )
        return found
    path = Path(config.path).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"huggingface: {path} does not exist; set path to a folder or a file")
    return _files_of_folder(path, config.train_split if split == "train" else config.test_split)


def files_digest(config: HuggingFaceOptions, splits: Iterable[str]) -> str:
    """Changes with names, order and contents of the splits' local files."""
    return contents_digest(
        {
            f"{split}/{number:06}/{file.name}": file
            for split in splits
            for number, file in enumerate(local_files(config, split))
        }
    )


def _files_of_folder(folder: Path, split: str) -> list[Path]:
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise InputError(f"huggingface: {folder} holds no Parquet files")
    wanted = [file for file in files if _belongs(file.relative_to(folder), split)]
    if not wanted:
        names = [file.relative_to(folder).as_posix() for file in files]
        shown = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
        raise InputError(
            f"huggingface: no Parquet file of {folder} is of the split {split!r} ({shown}); set "
            "train_split and test_split, or train_files and test_files"
        )
    return wanted


def _belongs(file: Path, split: str) -> bool:
    """``train-00000-of-00005.parquet``, ``train.parquet`` or ``train/0000.parquet``."""
    rest = file.stem.removeprefix(split)
    is_named = file.stem.startswith(split) and (not rest or not rest[0].isalnum())
    return is_named or split in file.parts[:-1]


def _is_relative(path: Path) -> bool:
    """``./data``, ``../data`` or more than the two parts of owner/name."""
    return path.parts[:1] in ((".",), ("..",)) or len(path.parts) > 2
