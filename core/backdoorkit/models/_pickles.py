"""Reads what ``torch.save`` wrote, without running anything that is inside.

Two gates stand one behind the other. A scan lists what the pickles of a file want to import,
without executing them, and refuses all but the few names that weights need. Then torch's own
restricted reader (``weights_only=True``) takes the file. Of numpy, only what rebuilds scalars
("best accuracy") and arrays (the indices in BackdoorBench's ``attack_result.pt``) is let through,
and what stands in for it here does nothing at all.
"""

from __future__ import annotations

import pickletools
import re
import tarfile
import warnings
import zipfile
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, NoReturn

import attrs
import torch

from backdoorkit.errors import InputError, UnsafeFileError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

__all__ = ["printable", "read_torch_file"]

#: The old format is four pickles (magic number, protocol, machine, object) and the storages' keys.
_OLD_FORMAT_PICKLES: Final = 5
#: What torch's restricted reader knows is protocol 2, the one that torch.save writes.
_PROTOCOL: Final = 2

#: What rebuilds numpy's scalars and arrays, as its versions before and since 2.0 spell it.
_NUMPY: Final = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
)
_HARMLESS: Final = frozenset(
    {
        "__builtin__.set",
        "builtins.set",
        "_codecs.encode",
        "collections.Counter",
        "collections.OrderedDict",
        "torch.Size",
        "torch.device",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch.nn.parameter.Parameter",
        "torch.storage.TypedStorage",
        "torch.storage.UntypedStorage",
        *_NUMPY,
    }
)
_STORAGE: Final = re.compile(r"torch\.(cuda\.)?[A-Z][A-Za-z0-9]*Storage")
#: First bytes of gzip, bzip2, xz and 7z.
_PACKED: Final = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf")
_ADVICE: Final = (
    "ask for the weights alone (a state_dict) as .safetensors, or convert the file where running "
    "its code can do no harm"
)


def read_torch_file(path: Path) -> Any:
    """Whatever tensors and plain values a ``torch.save`` file holds, on the CPU.

    Raises
    ------
    UnsafeFileError
        where the file wants anything imported that weights do not need.
    InputError
        where it is damaged or not such a file.

    """
    with path.open("rb") as stream:
        _refuse_unsafe(stream, path)
        stream.seek(0)
        allowed: list[Any] = [(_Ignored, name) for name in _NUMPY]
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            warnings.simplefilter("ignore")  # what torch warns of is refused or of no concern
            try:
                return torch.load(stream, map_location="cpu", weights_only=True)
            except Exception as error:  # a damaged file can make it fail in any way
                raise InputError(
                    f"{path} cannot be read: {_first_line(error)}; it may be cut short or "
                    "damaged, so copy or download it again"
                ) from error


def printable(name: object) -> str:
    """A name out of a foreign file, safe to show on a terminal and of bounded length."""
    text = ascii(str(name))[1:-1]
    return text if len(text) <= 80 else text[:77] + "..."


class _Ignored:
    """Takes the place of numpy's scalars, arrays and types, whose values nobody asks for."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


# -- the scan --------------------------------------------------------------------------------------


@attrs.define
class _Scan:
    """What one pickle wants, as far as it can be followed without executing it."""

    imports: list[str] = attrs.field(factory=list)
    protocol: int = 0
    is_complete: bool = False


def _scan(stream: BinaryIO) -> _Scan:
    """Read the pickle at the stream's position, up to its end or its first fault."""
    scan = _Scan()
    strings: list[str] = []
    memo: dict[int, str] = {}
    try:
        operations: Iterator[tuple[Any, Any, Any]] = pickletools.genops(stream)
        for opcode, argument, _ in operations:
            name, last = opcode.name, strings[-1] if strings else ""
            scan.protocol = max(scan.protocol, argument if name == "PROTO" else opcode.proto)
            if name in ("GLOBAL", "INST"):
                scan.imports.append(argument.replace(" ", ".", 1))
            elif name == "STACK_GLOBAL":
                scan.imports.append(".".join(strings[-2:]))
            elif name in ("EXT1", "EXT2", "EXT4"):
                scan.imports.append(f"copyreg extension {argument}")
            elif name == "MEMOIZE":
                memo[len(memo)] = last
            elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[argument] = last
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                strings.append(memo.get(argument, ""))
            elif isinstance(argument, str):
                strings.append(argument)
        scan.is_complete = True
    except (ValueError, OverflowError, MemoryError):  # cut short, or no pickle
        pass
    return scan


def _refuse_unsafe(stream: BinaryIO, path: Path) -> None:
    start = stream.read(64)
    stream.seek(0)
    # Told apart as torch does it, so that nobody can show one file to each of the two gates.
    is_archive = start.startswith(b"PK\x03\x04")
    scans = _scan_archive(stream, path) if is_archive else _scan_sequence(stream)
    if not is_archive and not start.startswith(b"\x80"):
        # Pickles of the oldest protocols look like text, and text at times like a cut-off pickle.
        scans = [scan for scan in scans if scan.is_complete and all(map(_is_name, scan.imports))]
        if not any(scan.imports for scan in scans):
            _refuse_other_kind(start, path)
    wanted = [name for scan in scans for name in scan.imports if not _is_harmless(name)]
    if wanted:
        _refuse_imports(list(dict.fromkeys(wanted)), path)
    protocol = max(scan.protocol for scan in scans)
    if protocol > _PROTOCOL:
        raise UnsafeFileError(
            f"{path} was not read: it is pickled in protocol {protocol}, which no safe reader "
            "takes; save the state_dict as .safetensors or with torch.save's default protocol"
        )


def _is_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _is_harmless(name: str) -> bool:
    if name in _HARMLESS or _STORAGE.fullmatch(name):
        return True
    module, _, attribute = name.rpartition(".")
    return module == "torch" and isinstance(getattr(torch, attribute, None), torch.dtype)


def _scan_sequence(stream: BinaryIO) -> list[_Scan]:
    scans = [_scan(stream)]
    while scans[-1].is_complete and len(scans) < _OLD_FORMAT_PICKLES:
        scans.append(_scan(stream))
    return scans


def _scan_archive(stream: BinaryIO, path: Path) -> list[_Scan]:
    try:
        with zipfile.ZipFile(stream) as archive:
            return [_scan(BytesIO(archive.read(member))) for member in _pickles(archive, path)]
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"{path} is a damaged archive: {_first_line(error)}; copy or download it again"
        ) from error


def _pickles(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    members = archive.infolist()
    names = [member.filename.rpartition("/")[2] for member in members]
    if "constants.pkl" in names:
        raise UnsafeFileError(
            f"{path} was not read: it is a TorchScript program and not only weights; {_ADVICE}"
        )
    if any(m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1 for m in members):
        raise InputError(
            f"{path} is a compressed archive, which torch.save does not write; unpack it and "
            "give the weights file inside"
        )
    if "data.pkl" not in names:
        raise InputError(
            f"{path} is an archive that torch.save did not write; unpack it and give the weights "
            "file inside"
        )
    return [m for m, name in zip(members, names, strict=True) if name.endswith(".pkl")]


# -- refusals --------------------------------------------------------------------------------------


def _refuse_imports(wanted: list[str], path: Path) -> NoReturn:
    shown = ", ".join(printable(name) for name in wanted[:3])
    more = f" and {len(wanted) - 3} more" if len(wanted) > 3 else ""
    raise UnsafeFileError(
        f"{path} was not read: it wants to import {shown}{more}, which would run code that its "
        f"author chose; {_ADVICE}"
    )


def _refuse_other_kind(start: bytes, path: Path) -> NoReturn:
    if path.suffix.lower() == ".onnx":
        raise InputError(
            f"{path} was not read: an ONNX graph is no PyTorch module, and its weights have lost "
            "their names; give the state_dict of the model that it was exported from"
        )
    first_line = start.decode("utf-8", "replace").split("\n")[0].strip()
    if start.startswith(_PACKED) or _is_tar(path):
        fault = "is a packed archive; unpack it and give the weights file inside"
    elif first_line.isprintable() and first_line and "\ufffd" not in first_line:
        fault = f"begins with '{printable(first_line)}'; was it downloaded whole?"
    else:
        fault = "is of an unknown format; give a .safetensors, .pt or .pth file"
    raise InputError(f"{path} holds no weights: it {fault}")


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except OSError:
        return False


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {printable(lines[0])}" if lines else type(error).__name__
