"""Figures of analyses: one style, legible on a phone and on paper.

A figure is five inches wide: a column of a paper, and about the width of a phone at the size of its
text. Panels therefore stand below each other, never side by side.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["WIDTH", "new_figure", "png_bytes"]

#: inches
WIDTH: Final = 5.0
#: pixels per inch: enough for print, and for a phone's dense screen
_RESOLUTION: Final = 180
_TEXT: Final[dict[str, Any]] = {"fontsize": 10}


def new_figure(panels: int = 1, *, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    """An empty figure with ``panels`` axes below each other, each ``height`` inches high.

    It is made without pyplot: no global state, no window system.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, panels * height), layout="constrained", facecolor="white")
    axes = list(figure.subplots(panels, 1, squeeze=False)[:, 0])
    for panel in axes:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=9)
        panel.xaxis.label.set(**_TEXT)
        panel.yaxis.label.set(**_TEXT)
    return figure, axes


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_RESOLUTION, metadata={"Software": None})
    return stream.getvalue()
