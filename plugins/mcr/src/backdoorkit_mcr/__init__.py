"""Mode Connectivity Repair: leave the victim along a path of low clean loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from backdoorkit import MethodInfo, Need, Selection, Stage, TrainOptions, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MCRConfig", "backdoorkit_defenses"]


@attrs.frozen(kw_only=True)
class MCRConfig(TrainOptions):
    """A curve from the victim (t = 0) to its fine-tuned copy (t = 1), and a place on it.

    The options shared with all training (epochs, learning rate...) are those of the curve. The
    fine-tuned copy has its own four below, and the rest in common with the curve.
    """

    curve: Literal["bezier", "polygonal"] = option("bezier", help="Shape of the curve.")
    points: int = option(
        3,
        ge=3,
        symbol="n",
        help="Points that the curve is made from, with both ends; those in between are trained.",
    )
    selection: Selection = option(
        Selection.CLEAN,
        help="How t is chosen: fixed; or of the grid the one farthest from the victim that keeps "
        "accuracy on a held-out part of the reserve (clean), or of those the one with the "
        "lowest test attack success (oracle).",
    )
    t: float = option(0.5, ge=0, le=1, symbol="t", help="Place on the curve where it is fixed.")
    grid: tuple[float, ...] = option(
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        gt=0,
        lt=1,
        help="Places tried by the selections clean and oracle, ascending.",
    )
    tolerance: float = option(
        0.05, ge=0, le=1, help="Accuracy the repaired model may lose on the held-out part."
    )
    held_out: float = option(
        0.2, gt=0, lt=1, help="Share of the reserve kept for choosing t; none where t is fixed."
    )
    endpoint_epochs: int = option(
        100, ge=0, help="Passes over the reserve that the copy at the curve's end is fine-tuned."
    )
    endpoint_learning_rate: float = option(
        0.01, ge=0, help="Peak learning rate of that fine-tuning."
    )
    endpoint_schedule: Literal["constant", "cosine", "one-cycle", "step"] = option(
        "cosine", help="Learning rate of that fine-tuning over time."
    )
    endpoint_weight_decay: float = option(5e-4, ge=0, help="Weight decay of that fine-tuning.")
    epochs: int = option(
        100, ge=0, symbol="E", help="Passes over the reserve that the curve is trained."
    )
    batch_size: int = option(128, ge=1, help="Images per step; each step draws one t.")
    learning_rate: float = option(0.01, ge=0, help="Peak learning rate of the curve.")
    schedule: Literal["constant", "cosine", "one-cycle", "step"] = option(
        "constant", help="Learning rate of the curve over time."
    )
    late_decay: bool = option(
        True,
        help="Scale the curve's gradients by 1 in the first half of the epochs, then linearly "
        "down to 0.01 at nine tenths: the learning rate of curve finding (SGD only).",
    )
    weight_decay: float = option(1e-4, ge=0, help="L2 penalty of the curve.")
    penalized: Literal["curve", "points"] = option(
        "curve",
        help="What the L2 penalty is on: the weights at the drawn t, or the trained points.",
    )
    accumulate_gradients: bool = option(
        False,
        help="Let every step of the curve follow the sum of all gradients so far, as BackdoorBench "
        "does, which never resets them; wants a far smaller learning rate.",
    )

    def __attrs_post_init__(self) -> None:
        if not self.grid or list(self.grid) != sorted(set(self.grid)):
            raise ValueError(f"grid must ascend, without repeats, not {self.grid}")
        if self.late_decay and self.optimizer != "sgd":
            raise ValueError(
                f"late_decay scales gradients, which {self.optimizer} ignores; switch it off and "
                "choose a schedule"
            )


# CIFAR-10. Where mirroring changes the class: horizontal_flip = false.
_PAPER: Final[dict[str, Any]] = {
    "curve": "bezier",
    "points": 3,
    "selection": "fixed",
    "t": 0.1,
    "endpoint_epochs": 100,
    "endpoint_learning_rate": 0.01,
    "endpoint_schedule": "cosine",
    "epochs": 100,
    "batch_size": 128,
    "learning_rate": 0.01,
    "schedule": "constant",
    "late_decay": True,
    "weight_decay": 1e-4,
    "penalized": "curve",
    "crop_padding": 4,
    "horizontal_flip": True,
}


@hookimpl
def backdoorkit_defenses() -> Iterable[MethodInfo]:
    """The defense MCR."""
    yield MethodInfo(
        name="mcr",
        summary="Mode Connectivity Repair: a place on a low-loss curve between the victim and its "
        "fine-tuned copy.",
        reference="Zhao, Chen, Das, Ramamurthy and Lin, Bridging Mode Connectivity in Loss "
        "Landscapes and Adversarial Robustness, ICLR 2020, arXiv:2005.00060; curves: Garipov et "
        "al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, NeurIPS 2018",
        implementation="backdoorkit_mcr._defense:MCR",
        config=MCRConfig,
        stage=Stage.POST_TRAINING,
        needs={Need.WEIGHTS, Need.CLEAN_SAMPLES},
        presets={
            "paper": _PAPER,
            # What the released code's instructions ask for with a residual network.
            "official": {**_PAPER, "epochs": 200, "learning_rate": 0.03, "weight_decay": 3e-4},
            # Its learning rate belongs to gradients that it never resets.
            "backdoorbench": {
                **_PAPER,
                "learning_rate": 3e-5,
                "accumulate_gradients": True,
                "schedule": "cosine",
                "late_decay": False,
                "weight_decay": 5e-4,
                "penalized": "points",
            },
        },
    )
