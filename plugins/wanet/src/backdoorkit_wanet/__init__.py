"""WaNet: a faint elastic warp of the whole image, and noisy warps that keep their label."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs

from backdoorkit import IndexPolicy, MethodInfo, Need, PoisonOptions, Stage, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["WaNetConfig", "backdoorkit_attacks"]


@attrs.frozen(kw_only=True)
class WaNetConfig(PoisonOptions):
    """How images are warped, and how many."""

    own_covers: ClassVar[bool] = True

    index_policy: IndexPolicy = option(
        IndexPolicy.PER_BATCH,
        help="The paper's attack draws its samples anew in every batch, which takes control of the "
        "training; fixed is a poisoned training set.",
    )
    cover_ratio: float = option(
        2.0,
        ge=0,
        help="Covers for each poisoned sample: warped with noise of their own, under their true "
        "label.",
    )
    grid_size: int = option(4, ge=2, symbol="k", help="Side of the control grid in points.")
    strength: float = option(
        0.5, ge=0, symbol="s", help="Mean size of the warp at the control points."
    )
    rescale: float = option(
        1.0, gt=0, help="Factor on the warped coordinates; below 1 it magnifies the middle."
    )


@hookimpl
def backdoorkit_attacks() -> Iterable[MethodInfo]:
    """The WaNet attack."""
    paper = {"poison_rate": 0.1, "cover_ratio": 2.0, "grid_size": 4, "strength": 0.5}
    yield MethodInfo(
        name="wanet",
        summary="A faint elastic warp of the whole image, learned beside noisy warps that keep "
        "their label.",
        reference="Nguyen, Tran: WaNet - Imperceptible Warping-based Backdoor Attack, ICLR 2021, "
        "arXiv:2102.10369",
        implementation="backdoorkit_wanet._attack:WaNet",
        config=WaNetConfig,
        stage=Stage.TRAINING,
        needs={Need.TRAINING_DATA, Need.TRAINING_CONTROL},
        presets={
            "paper": {**paper, "index_policy": "per-batch"},
            # BackdoorBox and backdoor-toolbox: two index sets, drawn once.
            "data": {**paper, "index_policy": "fixed"},
        },
    )
