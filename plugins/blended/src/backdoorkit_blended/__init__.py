"""Blended: one faint pattern mixed into whole images, which are relabelled."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - read at runtime, where the options are made
from typing import TYPE_CHECKING, Literal

import attrs

from backdoorkit import MethodInfo, Need, PoisonOptions, Stage, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["BlendedConfig", "backdoorkit_attacks"]


@attrs.frozen(kw_only=True)
class BlendedConfig(PoisonOptions):
    """Which pattern is mixed in, and how strongly."""

    pattern: Literal["noise", "procedural", "image"] = option(
        "noise",
        help="Pattern: uniform noise, a cartoon-like drawing of discs and bars made from the seed, "
        "or a picture.",
    )
    alpha: float = option(
        0.2, ge=0, le=1, symbol="α", help="Share of the pattern in a poisoned training image."
    )
    test_alpha: float | None = option(
        None, ge=0, le=1, help="The same at test time, where it may be larger. Default: alpha."
    )
    grey_noise: bool = option(False, help="The same noise in every colour channel.")
    resample: bool = option(
        False,
        help="New noise for every image, as the released ABL, NAD and RNP code draws it; then the "
        "trigger is no fixed pattern.",
    )
    pattern_image: Path | None = option(
        None, help="Picture to mix in, with pattern = image; scaled to the images."
    )

    def __attrs_post_init__(self) -> None:
        if self.pattern == "image" and self.pattern_image is None:
            raise ValueError("pattern 'image' needs a file: set pattern_image")
        if self.pattern != "image" and self.pattern_image is not None:
            raise ValueError(f"pattern_image goes with pattern 'image', not {self.pattern!r}")
        if self.pattern != "noise" and (self.resample or self.grey_noise):
            raise ValueError(
                f"resample and grey_noise go with pattern 'noise', not {self.pattern!r}"
            )


@hookimpl
def backdoorkit_attacks() -> Iterable[MethodInfo]:
    """The blended attack."""
    yield MethodInfo(
        name="blended",
        summary="One faint pattern mixed into whole images, which get another label.",
        reference="Chen, Liu, Li, Lu, Song: Targeted Backdoor Attacks on Deep Learning Systems "
        "Using Data Poisoning, arXiv:1712.05526, 2017",
        implementation="backdoorkit_blended._attack:Blended",
        config=BlendedConfig,
        stage=Stage.DATA,
        needs={Need.TRAINING_DATA},
        presets={
            "paper": {"pattern": "noise", "alpha": 0.2},
            "backdoorbench": {
                "pattern": "procedural",
                "alpha": 0.2,
                "target": 0,
                "poison_rate": 0.1,
            },
            "abl": {"grey_noise": True, "alpha": 0.2, "target": 0, "poison_rate": 0.1},
            "abl-released": {
                "grey_noise": True,
                "resample": True,
                "alpha": 0.2,
                "target": 0,
                "poison_rate": 0.1,
            },
        },
    )
