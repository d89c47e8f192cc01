"""STRIP: a triggered input keeps its class whatever image is laid over it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from backdoorkit import MethodInfo, Need, Stage, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["StripConfig", "backdoorkit_detectors"]


@attrs.frozen(kw_only=True)
class StripConfig:
    """Options of the detector."""

    overlays: int = option(
        100, ge=1, symbol="N", help="Clean images that each input is superimposed with."
    )
    input_weight: float = option(1.0, gt=0, help="Weight of the input in the superposition.")
    overlay_weight: float = option(1.0, gt=0, help="Weight of the clean image in it.")
    false_rejections: float = option(
        0.01, gt=0, lt=1, help="Share of clean inputs that may be rejected (FRR)."
    )
    boundary: Literal["normal", "empirical"] = option(
        "normal",
        help="How the boundary follows from the reserve's entropies: as the quantile of a normal "
        "distribution fitted to them, or as their own quantile.",
    )
    images_at_once: int = option(
        0, ge=0, help="Superimposed images per forward pass; 0 is 128 on a CPU, 4096 elsewhere."
    )


@hookimpl
def backdoorkit_detectors() -> Iterable[MethodInfo]:
    """The detector STRIP."""
    yield MethodInfo(
        name="strip",
        summary="STRIP: reject inputs whose class survives being superimposed with clean images.",
        reference="Gao, Xu, Wang, Chen, Ranasinghe and Nepal, STRIP: A Defence Against Trojan "
        "Attacks on Deep Neural Networks, ACSAC 2019",
        implementation="backdoorkit_strip._detector:Strip",
        config=StripConfig,
        stage=Stage.INFERENCE,
        needs={Need.QUERIES, Need.CLEAN_SAMPLES},
        presets={
            "paper": {"overlays": 100, "false_rejections": 0.01, "boundary": "normal"},
            "mean": {"input_weight": 0.5, "overlay_weight": 0.5},
        },
    )
