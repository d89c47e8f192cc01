"""Adversarial Neuron Pruning: units that worst-case perturbations reach for first are cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from backdoorkit import MethodInfo, Need, Selection, Stage, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ANPConfig", "backdoorkit_defenses"]


@attrs.frozen(kw_only=True)
class ANPConfig:
    """How masks are learnt against perturbations of the units, and how far they prune."""

    iterations: int = option(2000, ge=0, help="Steps on the masks.")
    batch_size: int = option(
        128, ge=2, help="Images per step, drawn from the reserve with replacement."
    )
    learning_rate: float = option(0.2, gt=0, symbol="η", help="Learning rate of the masks.")
    momentum: float = option(0.9, ge=0, lt=1, help="SGD momentum of the masks.")
    epsilon: float = option(
        0.4, ge=0, symbol="ε", help="Largest perturbation, relative to the unit's weight and bias."
    )
    steps: int = option(1, ge=1, help="Sign steps of the perturbation, each of ε / steps.")
    alpha: float = option(
        0.2, ge=0, le=1, symbol="α", help="Share of the loss without perturbation."
    )
    project: bool = option(
        True,
        help="Keep perturbations in [-ε, ε]; without, as in the released code, the random start "
        "lets them reach 2 ε.",
    )
    units: Literal["auto", "norm", "neuron"] = option(
        "auto",
        help="What is masked: scales of norm layers, rows of convolutions and linear layers, or "
        "auto: the norms where there are any. The head never is.",
    )
    norm_statistics: Literal["batch", "running"] = option(
        "batch",
        help="What batch norm uses while masks are learnt: the batch's statistics (the model is in "
        "train mode) or its running ones (eval mode).",
    )
    selection: Selection = option(
        Selection.CLEAN,
        help="How the level is chosen: fixed, or by accuracy on a held-out part of the reserve "
        "(clean), or by test attack success (oracle).",
    )
    prune_by: Literal["threshold", "number"] = option(
        "threshold", help="What a level is: a threshold on the masks or a number of units."
    )
    threshold: float = option(
        0.2, ge=0, le=1, help="Units with masks up to this are pruned by the fixed selection."
    )
    number: int = option(
        100, ge=0, help="Units with the lowest masks that are pruned by the fixed selection."
    )
    grid: tuple[float, ...] = option(
        tuple(level / 20 for level in range(19)),
        ge=0,
        le=1,
        help="Thresholds tried by the selections clean and oracle, ascending.",
    )
    step: int = option(20, ge=1, help="Distance of the numbers of units tried by these.")
    tolerance: float = option(
        0.05, ge=0, le=1, help="Accuracy that pruning may cost on the held-out part."
    )
    held_out: float = option(
        0.2, gt=0, lt=1, help="Share of the reserve kept for choosing the level."
    )
    crop_padding: int = option(0, ge=0, help="Random crop after zero padding by this many pixels.")
    horizontal_flip: bool = option(False, help="Mirror half of the images, chosen at random.")

    def __attrs_post_init__(self) -> None:
        if list(self.grid) != sorted(set(self.grid)):
            raise ValueError(f"grid must ascend, without repeats, not {self.grid}")


# CIFAR-10, 1 % reserve. Where mirroring changes the class: horizontal_flip = false.
_PAPER = {
    "iterations": 2000,
    "batch_size": 128,
    "learning_rate": 0.2,
    "epsilon": 0.4,
    "steps": 1,
    "alpha": 0.2,
    "project": True,
    "selection": "fixed",
    "prune_by": "threshold",
    "threshold": 0.2,
    "crop_padding": 4,
    "horizontal_flip": True,
}


@hookimpl
def backdoorkit_defenses() -> Iterable[MethodInfo]:
    """The defense ANP."""
    yield MethodInfo(
        name="anp",
        summary="Adversarial Neuron Pruning: learn masks against perturbed units and prune the "
        "lowest.",
        reference="Wu and Wang, Adversarial Neuron Pruning Purifies Backdoored Deep Models, "
        "NeurIPS 2021",
        implementation="backdoorkit_anp._defense:ANP",
        config=ANPConfig,
        stage=Stage.POST_TRAINING,
        needs={Need.WEIGHTS, Need.CLEAN_SAMPLES},
        presets={
            "paper": _PAPER,
            # What the released code runs: perturbations are not projected.
            "official": {**_PAPER, "project": False},
            # 5 % reserve, a twentieth of the learning rate, and a threshold chosen by what no
            # defender has.
            "backdoorbench": {
                **_PAPER,
                "project": False,
                "learning_rate": 0.01,
                "batch_size": 256,
                "selection": "oracle",
                "tolerance": 0.1,
            },
        },
    )
