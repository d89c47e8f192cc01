"""LF: a smooth pattern, added to whole images, which are relabelled."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - read at runtime, where the options are made
from typing import TYPE_CHECKING, Literal

import attrs

from backdoorkit import LabelMapping, MethodInfo, Need, Stage, SurrogateOptions, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["LFConfig", "backdoorkit_attacks"]

_NEED_SURROGATE = ("optimised", "deepfool")


@attrs.frozen(kw_only=True)
class LFConfig(SurrogateOptions):
    """Which smooth pattern is added. The surrogate is trained for the searched patterns only."""

    pattern: Literal["dome", "optimised", "deepfool", "file"] = option(
        "dome",
        help="Pattern: a dome, the shape that repeated smoothing ends at; a smooth pattern that "
        "gradient descent leads to the target class on a surrogate; one that the paper's search "
        "by DeepFool finds; or a NumPy file.",
    )
    amplitude: float = option(
        51.0, gt=0, le=255, help="Largest value of the pattern, in grey levels of 255."
    )
    colour: tuple[float, ...] = option(
        (),
        ge=0,
        le=1,
        help="Share of the dome in each channel. Default: 0.353, 0, 1 for red, green and blue, as "
        "in BackdoorBench's pattern for PreAct-ResNet-18; 1 for grey images.",
    )
    steps: int = option(200, ge=1, help="Steps of the gradient descent on an optimised pattern.")
    pattern_file: Path | None = option(
        None,
        help="NumPy file with the pattern, H x W x C: whole numbers are grey levels, fractions "
        "are shares of 1. It is added as it is, whatever the amplitude.",
    )

    def __attrs_post_init__(self) -> None:
        if self.pattern == "file" and self.pattern_file is None:
            raise ValueError("pattern 'file' needs a file: set pattern_file")
        if self.pattern != "file" and self.pattern_file is not None:
            raise ValueError(f"pattern_file goes with pattern 'file', not {self.pattern!r}")
        if self.pattern != "dome" and self.colour:
            raise ValueError(f"colour goes with pattern 'dome', not {self.pattern!r}")
        if self.colour and not any(self.colour):
            raise ValueError("colour must have a share above 0: no dome is no trigger")
        if self.pattern in _NEED_SURROGATE and self.label_map is LabelMapping.ALL_TO_ALL:
            raise ValueError(
                f"pattern {self.pattern!r} leads to one target; with label_map 'all-to-all' take "
                "pattern 'dome' or 'file'"
            )


@hookimpl
def backdoorkit_attacks() -> Iterable[MethodInfo]:
    """The low-frequency attack."""
    yield MethodInfo(
        name="lf",
        summary="A smooth, low-frequency pattern added to whole images, which get another label.",
        reference="Zeng, Park, Mao, Jia: Rethinking the Backdoor Attacks' Triggers: A Frequency "
        "Perspective, ICCV 2021, arXiv:2104.03413",
        implementation="backdoorkit_lf._attack:LF",
        config=LFConfig,
        stage=Stage.DATA,
        needs={Need.TRAINING_DATA},
        presets={
            "paper": {"pattern": "deepfool", "amplitude": 51.0, "poison_rate": 0.1},
            "backdoorbench": {
                "pattern": "dome",
                "amplitude": 51.0,
                "poison_rate": 0.1,
                "target": 0,
            },
        },
    )
