"""CIFAR-10 and CIFAR-100, from either official archive, without unpickling anything.

The "python version" that most people have is made of pickles, which would run what is written in
them. Here they are only walked through, instruction by instruction, and the pixels and labels
picked out.
"""

from __future__ import annotations

import abc
import pickletools
from typing import TYPE_CHECKING, Any, ClassVar, Final

import attrs
import numpy as np
import torch

from backdoorkit.contracts import Dataset
from backdoorkit.data._torchvision import download_archive, folder_of
from backdoorkit.data.images import ImageSet
from backdoorkit.data.options import DownloadOptions
from backdoorkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Bytes = np.ndarray[Any, np.dtype[np.uint8]]

__all__ = ["Cifar10", "Cifar100"]

_PIXELS: Final = 3 * 32 * 32
#: the largest official file has 155 MB
_MOST_BYTES: Final = 200_000_000
_NAMES: Final = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


@attrs.frozen(kw_only=True)
class _Layout:
    """Where the images of one set are, and how they are written down."""

    archive: str
    md5: str
    binary_folder: str
    binary_files: dict[str, tuple[str, ...]]
    #: bytes before the pixels of a record; the last of them is the class
    label_bytes: int
    python_folder: str
    python_files: dict[str, tuple[str, ...]]
    #: under which the python version has the classes
    label_key: str


class _Cifar(Dataset[DownloadOptions]):
    name: ClassVar[str]
    layout: ClassVar[_Layout]
    num_classes: ClassVar[int]

    def load(self, split: str, cache: Path) -> ImageSet:
        """Images of ``split``, from the binary or else the python version in the folder."""
        root, layout = folder_of(self.config, cache), self.layout
        binary, python = root / layout.binary_folder, root / layout.python_folder
        if not binary.is_dir() and not python.is_dir():
            wanted = (layout.binary_folder, layout.python_folder)
            download_archive(self.name, self.config, root, layout.archive, layout.md5, wanted)
        read: Callable[[Path], tuple[Bytes, list[int]]]
        if binary.is_dir():
            read, folder, names = self._read_binary, binary, layout.binary_files[split]
        else:
            read, folder, names = self._read_python, python, layout.python_files[split]
        parts = [read(_present(self.name, folder / name)) for name in names]
        pixels = np.concatenate([part for part, _ in parts]).reshape(-1, 3, 32, 32)
        labels = torch.tensor([label for _, part in parts for label in part])
        return ImageSet.from_tensors(
            torch.from_numpy(pixels), labels, class_names=self._class_names(folder)
        )

    def fingerprint(self) -> str:
        """The official images, which do not change."""
        return f"{self.name}-official"

    @abc.abstractmethod
    def _class_names(self, folder: Path) -> tuple[str, ...]:
        """Names of the classes, which the archive may hold."""

    def _read_binary(self, path: Path) -> tuple[Bytes, list[int]]:
        """Records of a few label bytes and 3,072 bytes of pixels, channel by channel."""
        size = self.layout.label_bytes + _PIXELS
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        if len(content) == 0 or len(content) % size:
            raise _damaged(self.name, path, f"its {len(content)} bytes are no whole records")
        records = content.reshape(-1, size)
        labels = records[:, self.layout.label_bytes - 1].tolist()
        return records[:, self.layout.label_bytes :], self._checked(labels, path)

    def _read_python(self, path: Path) -> tuple[Bytes, list[int]]:
        pixels, values = b"", dict[str, list[int]]()
        key, is_rowwise = "", True
        for name, argument in _instructions(self.name, path):
            if isinstance(argument, str) and "STRING" in name and len(argument) < _PIXELS:
                key = argument
            elif isinstance(argument, str) and "STRING" in name and is_rowwise:
                pixels = argument.encode("latin-1")
            elif isinstance(argument, int) and name.startswith("BININT"):
                values.setdefault(key, []).append(argument)
            if name in ("NEWTRUE", "NEWFALSE"):
                # What comes before the pixels of an array: whether they are column by column.
                is_rowwise = name == "NEWFALSE"
        labels = values.get(self.layout.label_key, [])
        if not labels or len(pixels) != len(labels) * _PIXELS:
            raise _damaged(self.name, path, "pixels and labels do not go together")
        content = np.frombuffer(pixels, dtype=np.uint8).reshape(-1, _PIXELS)
        return content, self._checked(labels, path)

    def _checked(self, labels: list[int], path: Path) -> list[int]:
        if min(labels) < 0 or max(labels) >= self.num_classes:
            raise _damaged(self.name, path, f"labels go beyond {self.num_classes - 1}")
        return labels


class Cifar10(_Cifar):
    """Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009."""

    name = "cifar10"
    num_classes = 10
    layout = _Layout(
        archive="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        binary_folder="cifar-10-batches-bin",
        binary_files={
            "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
            "test": ("test_batch.bin",),
        },
        label_bytes=1,
        python_folder="cifar-10-batches-py",
        python_files={
            "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
            "test": ("test_batch",),
        },
        label_key="labels",
    )

    def _class_names(self, folder: Path) -> tuple[str, ...]:
        return _NAMES


class Cifar100(_Cifar):
    """The same with 100 fine classes; the 20 coarse ones are not used."""

    name = "cifar100"
    num_classes = 100
    layout = _Layout(
        archive="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        binary_folder="cifar-100-binary",
        binary_files={"train": ("train.bin",), "test": ("test.bin",)},
        label_bytes=2,
        python_folder="cifar-100-python",
        python_files={"train": ("train",), "test": ("test",)},
        label_key="fine_labels",
    )

    def _class_names(self, folder: Path) -> tuple[str, ...]:
        path = folder / "fine_label_names.txt"
        if path.is_file():
            names = path.read_text(encoding="utf-8").split()
        else:
            path = _present(self.name, folder / "meta")
            words = _words(self.name, path)
            begin = words.index("fine_label_names") + 1 if "fine_label_names" in words else 0
            names = words[begin : begin + self.num_classes]
        if len(names) != self.num_classes:
            raise _damaged(self.name, path, f"it names {len(names)} classes")
        return tuple(names)


def _present(name: str, path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{name}: {path} is missing; fetch the whole archive again")
    if path.stat().st_size > _MOST_BYTES:
        raise _damaged(name, path, "it is larger than any official file")
    return path


def _instructions(name: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Instructions of a pickle with their arguments; nothing is carried out."""
    try:
        for opcode, argument, _ in pickletools.genops(path.read_bytes()):
            yield opcode.name, argument
    except ValueError as error:
        raise _damaged(name, path, str(error)) from error


def _words(name: str, path: Path) -> list[str]:
    return [
        argument
        for opcode, argument in _instructions(name, path)
        if isinstance(argument, str) and ("STRING" in opcode or "UNICODE" in opcode)
    ]


def _damaged(name: str, path: Path, why: str) -> InputError:
    return InputError(f"{name}: {path} is damaged: {why}; delete it and fetch the archive again")
