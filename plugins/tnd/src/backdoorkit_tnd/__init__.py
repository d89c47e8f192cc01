"""TrojanNet detectors: what the cheapest way into a class excites tells if it is a backdoor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from backdoorkit import MethodInfo, Need, Stage, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["DataFreeConfig", "DataLimitedConfig", "backdoorkit_detectors"]


@attrs.frozen(kw_only=True)
class DataLimitedConfig:
    """Options of DL-TND."""

    images_per_class: int = option(
        5, ge=1, help="Correctly classified images of the reserve per class; one is enough to run."
    )
    margin: float = option(
        15.0, ge=0, symbol="τ", help="Margin between logits beyond which nothing more is gained."
    )
    iterations: int = option(101, ge=1, help="Steps on each perturbation.")
    rounds: int = option(8, ge=1, help="Rounds of the search for the smallest universal mask.")
    mask_rate: float = option(0.05, gt=0, help="Adam's learning rate on universal masks.")
    pattern_rate: float = option(0.05, gt=0, help="Adam's learning rate on universal patterns.")
    pattern_start: float = option(0.5, ge=0, le=1, help="First value of all patterns' pixels.")
    first_strength: float = option(
        3.0,
        gt=0,
        symbol="c",
        help="Strength of the first round: a step shrinks masks by rate / c. At 1 or below, no "
        "step of Adam outweighs that.",
    )
    least_strength: float = option(1.0, ge=0, help="Lower end of the search for c.")
    largest_strength: float = option(6.0, gt=0, help="Upper end of the search for c.")
    success_share: float = option(
        0.7, ge=0, lt=1, help="A round succeeds if more than this share of images is won over."
    )
    success_at: Literal["end", "any"] = option(
        "end", help="When a round must have succeeded: at its end, or at any of its steps."
    )
    single_rate: float = option(0.05, gt=0, help="Adam's learning rate on masks of single images.")
    single_pattern_rate: float = option(
        0.05, gt=0, help="Adam's learning rate on patterns of single images."
    )
    single_strength: float = option(1.5, gt=0, help="c of single images; there is one round.")
    representation: Literal["penultimate", "logits"] = option(
        "penultimate", help="What is compared: the inputs of the last layer, or its outputs."
    )
    quantile: float = option(
        0.25, ge=0, le=1, help="Quantile of the similarities over images that scores a class."
    )
    threshold: float = option(0.75, ge=-1, le=1, symbol="T", help="Score that flags a class.")
    area_factor: float = option(
        1.1,
        ge=0,
        help="Only classes whose universal mask is at most this much larger than the smallest are "
        "suspects; 0 makes suspects of all.",
    )
    area_ratio: float = option(
        1.0,
        gt=0,
        le=1,
        help="There are no suspects unless the smallest mask is at most this share of the next; 1 "
        "always looks for some.",
    )
    least_area: float = option(
        0.5, ge=0, help="Sum of a mask's values below which it counts as no mask at all."
    )
    images_at_once: int = option(
        0, ge=0, help="Images per forward pass; 0 is 128 on a CPU, 4096 elsewhere."
    )


@attrs.frozen(kw_only=True)
class DataFreeConfig:
    """Options of DF-TND."""

    seeds: int = option(10, ge=1, symbol="N", help="Random images that are started from.")
    restarts: int = option(1, ge=1, help="Independent sets of them; the median over sets counts.")
    iterations: int = option(1000, ge=1, help="Steps of the search.")
    refinement: int = option(
        1000, ge=0, help="Further steps after mask and pattern were averaged over the seeds."
    )
    rate: float = option(0.1, gt=0, help="Length of a step, along the gradient's sign.")
    penalty: float = option(1e-3, ge=0, symbol="γ", help="Weight of the masks' L1 norm.")
    penalty_twice: bool = option(
        False, help="Let the norm also pull on the gradient, not only shrink the mask after it."
    )
    mask_start: float = option(0.5, ge=0, le=1, help="First value of the masks; 0 is a saddle.")
    pattern_start: float = option(0.5, ge=0, le=1, help="First value of the patterns.")
    weights: Literal["sign", "gradient", "uniform"] = option(
        "sign",
        symbol="w",
        help="How the weights of the units move: along the gradient's sign, along the gradient, or "
        "not at all.",
    )
    rule: Literal["scale-free", "increase"] = option(
        "scale-free",
        help="Verdict by how far the largest increase stands out of the classes', or by the "
        "increase itself, in logits.",
    )
    deviations: float = option(
        2.0, gt=0, help="Deviations above the median at which an increase stands out."
    )
    ratio: float = option(2.0, gt=1, help="Ratio to the second largest at which it stands out.")
    threshold: float = option(
        100.0, gt=0, symbol="T", help="Increase of a logit that flags a class, with rule increase."
    )


_REFERENCE = (
    "Wang, Zhang, Liu, Chen, Xiong and Wang, Practical Detection of Trojan Neural Networks: "
    "Data-Limited and Data-Free Cases, ECCV 2020"
)


# Rates of patterns are of pixels from 0 to 255 there.
_DATA_LIMITED_OFFICIAL: Final[dict[str, Any]] = {
    "images_per_class": 5,
    "margin": 15.0,
    "iterations": 101,
    "rounds": 8,
    "mask_rate": 0.01,
    "pattern_rate": 0.01 / 255,
    "pattern_start": 1 / 255,
    "first_strength": 0.01,
    "least_strength": 0.0,
    "largest_strength": 6.0,
    "success_share": 0.7,
    "success_at": "any",
    "single_rate": 0.1,
    "single_pattern_rate": 0.1 / 255,
    "single_strength": 1.0,
    "representation": "logits",
    "quantile": 0.25,
    "threshold": 0.75,
    "area_factor": 0.0,
}
_DATA_FREE_OFFICIAL: Final[dict[str, Any]] = {
    "seeds": 10,
    "iterations": 1000,
    "refinement": 1000,
    "rate": 0.1,
    "penalty": 1e-3,
    "penalty_twice": True,
    "mask_start": 0.0,
    "pattern_start": 0.0,
    "weights": "sign",
    "rule": "increase",
    "threshold": 100.0,
}


@hookimpl
def backdoorkit_detectors() -> Iterable[MethodInfo]:
    """The two detectors."""
    yield MethodInfo(
        name="dl-tnd",
        summary="DL-TND: compare what universal and single perturbations towards a class excite.",
        reference=_REFERENCE,
        implementation="backdoorkit_tnd._data_limited:DataLimitedDetector",
        config=DataLimitedConfig,
        stage=Stage.POST_TRAINING,
        needs={Need.WEIGHTS, Need.CLEAN_SAMPLES},
        presets={
            "official": _DATA_LIMITED_OFFICIAL,
            "one-per-class": {"images_per_class": 1},
            # Ours: cosines of clean models are as high; their masks are nearly equal.
            "standing-out": {"area_ratio": 0.7},
        },
    )
    yield MethodInfo(
        name="df-tnd",
        summary="DF-TND: excite the last layer's inputs from noise; see if one class alone rises.",
        reference=_REFERENCE,
        implementation="backdoorkit_tnd._data_free:DataFreeDetector",
        config=DataFreeConfig,
        stage=Stage.POST_TRAINING,
        needs={Need.WEIGHTS},
        presets={
            "official": _DATA_FREE_OFFICIAL,
            "small": {"iterations": 200, "refinement": 200},
        },
    )
