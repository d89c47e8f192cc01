"""Pictures as data URIs, for a report that is one file."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["contact_sheet", "curves", "png_file", "scatter", "trigger_picture"]

#: pixels on the screen per row of a contact sheet
_TILE = 64


def trigger_picture(samples: Path) -> str | None:
    """The trigger on a flat grey image, as PNG; None without an attack."""
    tensors = load_file(samples)
    return _png(_framed(tensors["trigger"], 3 * _TILE)[0]) if "trigger" in tensors else None


def contact_sheet(samples: Path) -> str:
    """Clean images, triggered images and their difference times ten, in three rows, as PNG.

    ``samples`` holds ``clean`` and, after an attack, ``triggered`` (uint8, N x C x H x W).
    """
    tensors = load_file(samples)
    rows = [tensors["clean"]]
    if "triggered" in tensors:
        difference = tensors["triggered"].astype(np.int16) - tensors["clean"].astype(np.int16)
        # Grey is no change; brighter and darker are the trigger's sign.
        amplified = np.clip(128 + 10 * difference, 0, 255).astype(np.uint8)
        rows += [tensors["triggered"], amplified]
    sheet = np.concatenate([np.concatenate(list(_framed(row)), axis=2) for row in rows], axis=1)
    return _png(sheet)


def _framed(images: NDArray[np.uint8], side: int = _TILE) -> list[NDArray[np.uint8]]:
    """Each image enlarged by whole pixels to about ``side``, in a frame that is no trigger's."""
    factor = max(1, side // max(images.shape[2:]))
    large = images.repeat(factor, axis=2).repeat(factor, axis=3)
    frame = [(0, 0), (0, 0), (2, 2), (2, 2)]
    return list(np.pad(large, frame, constant_values=200))


def _png(image: NDArray[np.uint8]) -> str:
    from PIL import Image

    channels_last = np.ascontiguousarray(image.transpose(1, 2, 0))
    picture = Image.fromarray(channels_last[..., 0] if image.shape[0] == 1 else channels_last)
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return _uri("image/png", stream.getvalue())


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
