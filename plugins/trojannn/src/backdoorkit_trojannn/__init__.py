"""TrojanNN: a patch that is optimised to excite chosen neurons of a clean model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from backdoorkit import IndexPolicy, MethodInfo, Need, Stage, SurrogateOptions, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["TrojanNNConfig", "backdoorkit_attacks"]


@attrs.frozen(kw_only=True)
class TrojanNNConfig(SurrogateOptions):
    """Which neurons the patch excites, where it sits, and how it is planted."""

    mode: Literal["data", "retrain"] = option(
        "data",
        help="Poison a training set with a surrogate's patch; or take a trained model over without "
        "its data, as in the paper: reverse images, find its own patch, retrain its last layers.",
    )
    neurons: int = option(2, ge=1, symbol="q", help="Number of neurons that the patch excites.")
    layer: str = option(
        "",
        help="Name of the model's layer, linear or a convolution, whose inputs are the neurons. "
        "Default: the last linear layer.",
    )
    activation_target: float | None = option(
        None,
        gt=0,
        symbol="τ",
        help="Activation that is aimed at. Default: out of reach, at least 10 and 5 times what "
        "one clean image in a thousand exceeds.",
    )
    steps: int = option(1000, ge=1, help="Steps of optimising the patch.")
    patch_learning_rate: float = option(
        0.1, gt=0, help="Learning rate of Adam on the patch; it falls to zero as a cosine."
    )
    backgrounds: int = option(
        32, ge=0, help="Training images behind the patch in every step; 0 is a black background."
    )
    shape: Literal["square", "disc"] = option("square", help="Shape of the patch.")
    size: int | None = option(
        None, ge=1, help="Side of the patch in pixels. Default: 59 on images of 224, 10 on 32."
    )
    offset: int | None = option(
        None,
        ge=0,
        help="Pixels between the patch and the lower right edges. Default: 20 on images of 224, "
        "2 on 32.",
    )
    planting: Literal["replace", "add", "wrap"] = option(
        "replace",
        help="How the patch gets into an image: in place of the pixels, added and clipped, or "
        "added in 8 bits so that sums over 255 wrap around (BackdoorBench, ABL).",
    )
    reversed_images: int = option(
        20, ge=1, help="Images of each class that are reversed from the model, to retrain it with."
    )
    reversal_steps: int = option(300, ge=0, help="Steps of reversing them.")
    smoothness: float = option(
        1.0, ge=0, help="Weight of the total variation of reversed images, beside the loss."
    )
    retrain_epochs: int = option(20, ge=1, help="Passes of retraining over the reversed images.")
    retrain_learning_rate: float = option(
        0.05, gt=0, help="Peak learning rate of retraining what comes after the neurons."
    )

    @property
    def controls_training(self) -> bool:
        """Whether the model is retrained, or poisoned batch by batch."""
        return self.mode == "retrain" or self.index_policy is IndexPolicy.PER_BATCH

    def __attrs_post_init__(self) -> None:
        if self.mode == "retrain" and self.index_policy is IndexPolicy.PER_BATCH:
            raise ValueError("mode 'retrain' poisons no batches: set index_policy 'fixed'")


@hookimpl
def backdoorkit_attacks() -> Iterable[MethodInfo]:
    """The TrojanNN attack."""
    benchmark = {"activation_target": 100.0, "backgrounds": 0, "target": 0, "poison_rate": 0.1}
    yield MethodInfo(
        name="trojannn",
        summary="A patch optimised to excite chosen neurons of a clean model; images that carry it "
        "get another label.",
        reference="Liu, Ma, Aafer, Lee, Zhai, Wang, Zhang: Trojaning Attack on Neural Networks, "
        "NDSS 2018",
        implementation="backdoorkit_trojannn._attack:TrojanNN",
        config=TrojanNNConfig,
        stage=Stage.DATA,
        needs={Need.TRAINING_DATA},
        presets={
            "paper": {
                "mode": "retrain",
                "neurons": 1,
                "poison_rate": 1.0,
                "rate_basis": "append",
            },
            "trojanzoo": {**benchmark, "neurons": 2},
            "backdoorbench": {
                **benchmark,
                "neurons": 2,
                "shape": "disc",
                "planting": "wrap",
                "surrogate": "preact-resnet-18",
                "surrogate_epochs": 100,
                "surrogate_learning_rate": 0.01,
                "surrogate_crop_padding": 4,
                "surrogate_horizontal_flip": True,
            },
            "abl": {
                "size": 3,
                "offset": 4,
                "planting": "wrap",
                "surrogate": "wrn-16-1",
                "target": 0,
                "poison_rate": 0.1,
            },
        },
    )
