"""An observer that writes TensorBoard logs: curves, metrics, contact sheets, the final table."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - read at runtime, where the options are made
from typing import TYPE_CHECKING

import attrs

from backdoorkit import MethodInfo, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["TensorBoardConfig", "backdoorkit_observers"]


@attrs.frozen(kw_only=True)
class TensorBoardConfig:
    """Where logs go, and what is in them."""

    folder: Path | None = option(
        None,
        help="Logs are written into a folder below this one, named after the run and its start. "
        "Default: tensorboard in the run's folder.",
    )
    images: bool = option(True, help="Write the contact sheet of every victim.")


@hookimpl
def backdoorkit_observers() -> Iterable[MethodInfo]:
    """The observer ``tensorboard``."""
    yield MethodInfo(
        name="tensorboard",
        summary="TensorBoard logs: training curves, metrics, contact sheets of triggers, the final "
        "table.",
        implementation="backdoorkit_tensorboard._observer:TensorBoard",
        config=TensorBoardConfig,
    )
