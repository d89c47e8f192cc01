"""Pictures as data URIs, for a report that is one file."""

from __future__ import annotations

import base64
import io
import re
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from safetensors.numpy import load_file

from backdoorkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = [
    "Sheet",
    "contact_sheet",
    "curves",
    "png_file",
    "scatter",
    "trigger_picture",
    "write_sheet",
]

#: pixels on the screen per row of a contact sheet
_TILE = 64


@attrs.frozen
class Sheet:
    """A contact sheet, and what its rows show."""

    image: NDArray[np.uint8]
    #: from top to bottom
    rows: tuple[str, ...]

    @property
    def uri(self) -> str:
        """As a PNG in a data URI."""
        return _png(self.image)

    def png_bytes(self) -> bytes:
        """As a PNG file."""
        return _png_bytes(self.image)


def trigger_picture(samples: Path) -> str | None:
    """Each trigger on a flat grey image, side by side, as PNG; None without an attack."""
    tensors = load_file(samples)
    shown = [_framed(tensors[name], 3 * _TILE)[0] for name in _named(tensors, "trigger")]
    return _png(np.concatenate(shown, axis=2)) if shown else None


def contact_sheet(samples: Path) -> Sheet:
    """Clean images, triggered images and their difference times ten, each in a row.

    ``samples`` holds ``clean`` (uint8, N x C x H x W) and, after an attack, ``triggered``; of a
    composed attack ``triggered.0`` and so on, and ``cover`` where it makes covers of its own.
    """
    tensors = load_file(samples)
    rows = {"as they are": tensors["clean"]}
    for name in (*_named(tensors, "triggered"), *_named(tensors, "cover")):
        what, _, number = name.partition(".")
        title = what if not number else f"{what} {int(number) + 1}"
        difference = tensors[name].astype(np.int16) - tensors["clean"].astype(np.int16)
        # Grey is no change; brighter and darker are the trigger's sign.
        amplified = np.clip(128 + 10 * difference, 0, 255).astype(np.uint8)
        rows |= {title: tensors[name], f"{title}: difference times ten": amplified}
    framed = [np.concatenate(_framed(row), axis=2) for row in rows.values()]
    return Sheet(np.concatenate(framed, axis=1), tuple(rows))


def write_sheet(samples: Path, folder: Path, name: str) -> Path:
    """Write the contact sheet into a PNG file in ``folder`` that is named after ``name``.

    Raises :class:`InputError` where it cannot be written.
    """
    plain = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.")
    path = folder / f"{plain}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contact_sheet(samples).png_bytes())
    except OSError as error:
        raise InputError(f"the picture {path} cannot be written: {error.strerror}") from None
    return path


def _named(tensors: Mapping[str, Any], name: str) -> list[str]:
    """``name``, or ``name.0``, ``name.1``..., of what there is."""
    numbered = [key for key in tensors if key.startswith(f"{name}.")]
    return sorted(numbered, key=lambda key: int(key.rpartition(".")[2])) or [
        key for key in tensors if key == name
    ]


def _framed(images: NDArray[np.uint8], side: int = _TILE) -> list[NDArray[np.uint8]]:
    """Each image enlarged by whole pixels to about ``side``, in a frame that is no trigger's."""
    factor = max(1, side // max(images.shape[2:]))
    large = images.repeat(factor, axis=2).repeat(factor, axis=3)
    frame = [(0, 0), (0, 0), (2, 2), (2, 2)]
    return list(np.pad(large, frame, constant_values=200))


def _png(image: NDArray[np.uint8]) -> str:
    return _uri("image/png", _png_bytes(image))


def _png_bytes(image: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    channels_last = np.ascontiguousarray(image.transpose(1, 2, 0))
    picture = Image.fromarray(channels_last[..., 0] if image.shape[0] == 1 else channels_last)
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def png_file(path: Path) -> str:
    """A PNG file as it is."""
    return _uri("image/png", path.read_bytes())


def scatter(points: Sequence[tuple[str, str, float, float]]) -> str:
    """Accuracy against attack success, one point per (attack, defense, ASR, ACC); top left wins."""
    figure = _figure(6.4, 4.0)
    axes = figure.add_subplot()
    defenses = list(dict.fromkeys(defense for _, defense, _, _ in points))
    attacks = list(dict.fromkeys(attack for attack, _, _, _ in points))
    markers = "osD^vP*X"
    for attack, defense, asr, acc in points:
        axes.plot(
            100 * asr,
            100 * acc,
            markers[attacks.index(attack) % len(markers)],
            color=f"C{defenses.index(defense) % 10}",
            label=defense if attack == attacks[0] else None,
            markersize=8,
            alpha=0.85,
        )
    axes.set_xlabel("attack success rate %")
    axes.set_ylabel("clean accuracy %")
    axes.set_xlim(-3, 103)
    # Never so close that a point's difference looks like a collapse.
    axes.set_ylim(max(-3, min(100 * acc for *_, acc in points) - 10), 103)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return _svg(figure)


def curves(history: Sequence[Mapping[str, Any]]) -> str:
    """Training loss and accuracy per epoch."""
    figure = _figure(6.4, 2.2)
    left, right = figure.subplots(1, 2)
    epochs = range(1, len(history) + 1)
    for axes, key, title, factor in (
        (left, "loss", "training loss", 1),
        (right, "accuracy", "training accuracy %", 100),
    ):
        axes.plot(epochs, [factor * epoch[key] for epoch in history], color="C0")
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("epoch", fontsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def _figure(width: float, height: float) -> Figure:
    """A figure without pyplot: no global state, no window system."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure) -> str:
    import matplotlib as mpl

    stream = io.BytesIO()
    # Text stays text, and the same numbers give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "backdoorkit"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return _uri("image/svg+xml", stream.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
