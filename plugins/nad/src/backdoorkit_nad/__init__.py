"""Neural Attention Distillation: fine-tune under the attention of a fine-tuned teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from backdoorkit import MethodInfo, Need, Stage, TrainOptions, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["NADConfig", "backdoorkit_defenses"]


@attrs.frozen(kw_only=True)
class NADConfig(TrainOptions):
    """The attention loss, the teacher's fine-tuning, and the student's.

    The options shared with all training (epochs, learning rate...) are the student's. The teacher
    has the four of its own below, and the rest in common with the student.
    """

    beta: tuple[float, ...] = option(
        (0.5, 4.0, 16.0),
        ge=0,
        symbol="β",
        help="Weight of each stage's distance between attention maps, first to last. They belong "
        "to the last stages: a model with fewer stages uses the last of these weights.",
    )
    distance: Literal["squared", "norm", "mean"] = option(
        "squared",
        help="Distance of two attention maps: squared L2 distance; its root, the norm (the "
        "paper's formula); or the mean over pixels, for which beta must grow with the map "
        "(released code, beta 500 1000 1000).",
    )
    power: float = option(
        2.0, ge=1, symbol="p", help="Power of activations that is summed over the channels."
    )
    layers: tuple[str, ...] = option(
        (),
        help="Layers whose attention is compared, one for each beta; none: the last layer of "
        "each of the last resolutions.",
    )
    teacher_epochs: int = option(10, ge=0, help="Passes of the teacher over the reserve.")
    teacher_learning_rate: float = option(0.1, ge=0, help="Peak learning rate of the teacher.")
    teacher_schedule: Literal["constant", "cosine", "one-cycle", "step"] = option(
        "step", help="Learning rate of the teacher over time."
    )
    teacher_milestones: tuple[float, ...] = option(
        (0.2,), ge=0, le=1, help="Where the teacher's step schedule drops, as shares of its epochs."
    )
    cutout: int = option(
        0, ge=0, help="Side, in pixels, of a black square at a random place of every image."
    )
    epochs: int = option(20, ge=0, symbol="E", help="Passes of the student over the reserve.")
    batch_size: int = option(64, ge=1, help="Images per step, for teacher and student.")
    learning_rate: float = option(0.1, ge=0, help="Peak learning rate of the student.")
    nesterov: bool = option(True, help="Nesterov momentum.")
    weight_decay: float = option(1e-4, ge=0, help="L2 penalty, added to the gradient.")
    schedule: Literal["constant", "cosine", "one-cycle", "step"] = option(
        "step", help="Learning rate of the student over time."
    )
    milestones: tuple[float, ...] = option(
        (0.1,),
        ge=0,
        le=1,
        help="Where the step schedule divides by ten, as shares of all epochs.",
    )

    def __attrs_post_init__(self) -> None:
        if not self.beta:
            raise ValueError("beta must have a weight for at least one stage")
        if self.layers and len(self.layers) != len(self.beta):
            raise ValueError(
                f"beta must have one weight for each of the {len(self.layers)} layers, "
                f"not {len(self.beta)}"
            )
        if len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers must be different from each other, not {self.layers}")


# CIFAR-10, 5 % reserve. Where mirroring changes the class: horizontal_flip = false.
_COMMON: Final[dict[str, Any]] = {
    "beta": (500.0, 1000.0, 1000.0),
    "distance": "mean",
    "power": 2.0,
    "momentum": 0.9,
    "crop_padding": 4,
    "horizontal_flip": True,
}
_OFFICIAL: Final[dict[str, Any]] = {
    **_COMMON,
    "teacher_epochs": 10,
    "teacher_learning_rate": 0.1,
    "teacher_schedule": "step",
    "teacher_milestones": (0.2,),
    "epochs": 20,
    "batch_size": 64,
    "learning_rate": 0.1,
    "schedule": "step",
    "milestones": (0.1,),
    "nesterov": True,
    "weight_decay": 1e-4,
    # What the released code calls a length of 3 blanks 2 x 2 pixels.
    "cutout": 2,
}


@hookimpl
def backdoorkit_defenses() -> Iterable[MethodInfo]:
    """The defense NAD."""
    yield MethodInfo(
        name="nad",
        summary="Neural Attention Distillation: fine-tune while the attention maps follow those of "
        "a fine-tuned teacher.",
        reference="Li, Lyu, Koren, Lyu, Li and Ma, Neural Attention Distillation: Erasing Backdoor "
        "Triggers from Deep Neural Networks, ICLR 2021, arXiv:2101.05930",
        implementation="backdoorkit_nad._defense:NAD",
        config=NADConfig,
        stage=Stage.POST_TRAINING,
        needs={Need.WEIGHTS, Need.CLEAN_SAMPLES},
        presets={
            "official": _OFFICIAL,
            # Ten epochs, divided by ten every second one.
            "paper": {
                **_OFFICIAL,
                "epochs": 10,
                "milestones": (0.2, 0.4, 0.6, 0.8),
                "teacher_milestones": (0.2, 0.4, 0.6, 0.8),
            },
            # Its last stage is compared after pooling, where every map is the same: what is left
            # on PreAct-ResNet-18 are the last two real stages, with the first two weights.
            "backdoorbench": {
                **_COMMON,
                "beta": (500.0, 1000.0),
                "teacher_epochs": 10,
                "teacher_learning_rate": 0.01,
                "teacher_schedule": "constant",
                "epochs": 10,
                "batch_size": 256,
                "learning_rate": 0.01,
                "schedule": "constant",
                "nesterov": False,
                "weight_decay": 5e-4,
                "cutout": 0,
            },
        },
    )
