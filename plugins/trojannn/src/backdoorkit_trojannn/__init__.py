"""TrojanNN: a patch that is optimised to excite chosen neurons of a clean model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from backdoorkit import MethodInfo, Need, Stage, SurrogateOptions, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["TrojanNNConfig", "backdoorkit_attacks"]


@attrs.frozen(kw_only=True)
class TrojanNNConfig(SurrogateOptions):
    """Which neurons the patch excites, where it sits, and how it is planted."""

    neurons: int = option(2, ge=1, symbol="q", help="Number of neurons that the patch excites.")
    layer: str = option(
        "",
        help="Name of the surrogate's layer, linear or a convolution, whose inputs are the "
        "neurons. Default: the last linear layer.",
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
