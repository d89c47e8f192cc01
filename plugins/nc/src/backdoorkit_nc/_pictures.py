"""The reversed triggers as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backdoorkit.api import new_figure

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from torch import Tensor

    from backdoorkit_nc._verdict import Verdict

__all__ = ["CAPTION", "draw"]

CAPTION: Final = (
    "Reversed triggers: the mask, and the pattern as far as the mask lets it show, with the mask's "
    "norm in pixels; the smallest first, flagged classes in red."
)
#: classes that are shown; of more, those with the smallest masks
_MOST_SHOWN: Final = 20
_COLUMNS: Final = 5
#: inches
_ROW: Final = 1.15


def draw(verdict: Verdict) -> Figure:
    """Masks above patterns, class by class, the smallest norm first."""
    triggers = verdict.triggers
    shown = triggers.norms.argsort(stable=True)[:_MOST_SHOWN].tolist()
    rows = -(-len(shown) // _COLUMNS)
    figure, (place,) = new_figure(height=2 * rows * _ROW)
    grid = place.get_subplotspec()
    place.remove()
    assert grid is not None
    cells = grid.subgridspec(2 * rows, _COLUMNS)
    for number, label in enumerate(shown):
        row, column = divmod(number, _COLUMNS)
        mask, pattern = triggers.masks[label], triggers.patterns[label]
        colour = "C3" if label in verdict.flagged else "black"
        above = figure.add_subplot(cells[2 * row, column])
        above.imshow(_drawn(mask), cmap="gray", vmin=0, vmax=1)
        title = f"class {label}: {float(triggers.norms[label]):.1f}"
        above.set_title(title, fontsize=8, color=colour)
        below = figure.add_subplot(cells[2 * row + 1, column])
        below.imshow(_drawn(mask * pattern), cmap="gray", vmin=0, vmax=1)
        for axes in (above, below):
            axes.set_axis_off()
    return figure


def _drawn(image: Tensor) -> NDArray[np.float32]:
    """H x W, or H x W x 3; of another number of channels, their mean."""
    shown = image.permute(1, 2, 0) if len(image) == 3 else image.mean(dim=0)
    drawn: NDArray[np.float32] = shown.numpy()
    return drawn
