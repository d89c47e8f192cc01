"""The pruning-aware attack: the backdoor is trained into the units that clean images use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from backdoorkit import MethodInfo, Need, PoisonOptions, Stage, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PruningAwareConfig", "backdoorkit_attacks"]


@attrs.frozen(kw_only=True)
class PruningAwareConfig(PoisonOptions):
    """Which units are set aside, how the rest is poisoned, and with which trigger."""

    prune_ratio: float | None = option(
        None,
        ge=0,
        lt=1,
        help="Share of the penultimate units that is set aside, the least active first. Default: "
        "as many as tolerance allows.",
    )
    tolerance: float = option(
        0.5,
        ge=0,
        le=1,
        help="Training accuracy that setting units aside may cost; the training that follows wins "
        "it back.",
    )
    poison_epochs: int | None = option(
        None,
        ge=1,
        help="Passes of the pruned network over the poisoned data. Default: as many as the clean "
        "training before.",
    )
    poison_learning_rate: float | None = option(
        None, ge=0, help="Its peak learning rate. Default: that of the clean training."
    )
    trigger: Literal["white", "grid", "noise"] = option(
        "white",
        help="Trigger: a white square, a checkerboard of pixels, or noise over the whole image.",
    )
    size: int | None = option(
        None, ge=1, help="Side of the square in pixels. Default: 3 for every 32 pixels of height."
    )
    offset: int = option(
        0, ge=0, help="Pixels between the square and the lower right edges of the image."
    )
    alpha: float = option(0.2, gt=0, le=1, symbol="α", help="Share of the noise in the image.")

    @property
    def controls_training(self) -> bool:
        """Always: the attacker trains, prunes, trains again and restores."""
        return True


@hookimpl
def backdoorkit_attacks() -> Iterable[MethodInfo]:
    """The pruning-aware attack."""
    yield MethodInfo(
        name="pruningaware",
        summary="Sets dormant units aside, trains the backdoor into the rest, and puts them back.",
        reference="Liu, Dolan-Gavitt, Garg: Fine-Pruning: Defending Against Backdooring Attacks on "
        "Deep Neural Networks, RAID 2018",
        implementation="backdoorkit_pruningaware._attack:PruningAware",
        config=PruningAwareConfig,
        stage=Stage.TRAINING,
        needs={Need.TRAINING_DATA, Need.TRAINING_CONTROL},
    )
