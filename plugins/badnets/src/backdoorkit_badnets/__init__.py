"""BadNets: a small fixed patch, and the training images that carry it relabelled."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - read at runtime, where the options are made
from typing import TYPE_CHECKING, Literal

import attrs

from backdoorkit import MethodInfo, Need, PoisonOptions, Stage, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["BadNetsConfig", "backdoorkit_attacks"]


@attrs.frozen(kw_only=True)
class BadNetsConfig(PoisonOptions):
    """Which patch goes where."""

    trigger: Literal["white", "grid", "image"] = option(
        "white",
        help="Patch: a white square, the 3x3 checkerboard of the ABL and NAD code, or a picture.",
    )
    size: int | None = option(
        None,
        ge=1,
        help="Side of the patch in pixels; of a picture, its longer side. Default: 3 for every 32 "
        "pixels of image height, and a picture's own size.",
    )
    offset: int = option(0, ge=0, help="Pixels between the patch and both edges at its corner.")
    corner: Literal["bottom-right", "bottom-left", "top-right", "top-left", "all"] = option(
        "bottom-right",
        help="Corner of the image that the patch sits in; in all four, it is mirrored on the left.",
    )
    patch_image: Path | None = option(
        None,
        help="Picture to use as the patch, with trigger = image; where it is transparent, the "
        "image shows.",
    )

    def __attrs_post_init__(self) -> None:
        if self.trigger == "image" and self.patch_image is None:
            raise ValueError("trigger 'image' needs a file: set patch_image")
        if self.trigger != "image" and self.patch_image is not None:
            raise ValueError(f"patch_image goes with trigger 'image', not {self.trigger!r}")


@hookimpl
def backdoorkit_attacks() -> Iterable[MethodInfo]:
    """The BadNets attack."""
    yield MethodInfo(
        name="badnets",
        summary="A small fixed patch in a corner; images that carry it get another label.",
        reference="Gu, Dolan-Gavitt, Garg: BadNets, arXiv:1708.06733, 2017",
        implementation="backdoorkit_badnets._attack:BadNets",
        config=BadNetsConfig,
        stage=Stage.DATA,
        needs={Need.TRAINING_DATA},
        presets={
            "paper": {"trigger": "grid", "size": 3, "offset": 1, "poison_rate": 0.1},
            "paper-pixel": {"trigger": "white", "size": 1, "offset": 1, "poison_rate": 0.1},
            "backdoorbench": {"trigger": "white", "target": 0, "poison_rate": 0.1},
            "abl": {"trigger": "grid", "size": 3, "target": 0, "poison_rate": 0.1},
            "ibau": {"trigger": "white", "size": 4, "offset": 1, "target": 8},
        },
    )
