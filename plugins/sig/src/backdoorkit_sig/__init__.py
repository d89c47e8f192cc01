"""SIG: a faint sinusoid over images of the target class, which keep their label."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from backdoorkit import (
    LabelMapping,
    MethodInfo,
    Need,
    PoisonOptions,
    RateBasis,
    Stage,
    hookimpl,
    option,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SIGConfig", "backdoorkit_attacks"]

_WITHIN_TARGET = (RateBasis.ALL_WITHIN_TARGET, RateBasis.TARGET_CLASS)


@attrs.frozen(kw_only=True)
class SIGConfig(PoisonOptions):
    """Which sinusoid is added, and to whom.

    A basis within the target class is the clean-label attack; the others relabel (dirty label).
    """

    poison_rate: float = option(
        1.0, ge=0, le=1, symbol="ρ", help="Share of the rate basis that is poisoned."
    )
    rate_basis: RateBasis = option(
        RateBasis.TARGET_CLASS,
        help="What the rate is a share of and where samples are drawn from. Drawn from the target "
        "class, images keep their label; drawn from all classes, they get another (dirty label).",
    )
    delta: float = option(
        40.0, ge=0, le=255, symbol="Δ", help="Amplitude in training, in grey levels of 255."
    )
    test_delta: float | None = option(
        None, ge=0, le=255, help="The same at test time, where it may be larger. Default: delta."
    )
    frequency: float = option(
        6.0, gt=0, symbol="f", help="Periods of the sinusoid over the image's width."
    )
    wrapped_blend: bool = option(
        False,
        help="As the released ABL and NAD code: the sinusoid cut to whole grey levels, negative "
        "ones wrapped to bright ones, and a fifth of it mixed in instead of added.",
    )

    def __attrs_post_init__(self) -> None:
        if self.rate_basis in _WITHIN_TARGET and self.label_map is not LabelMapping.ALL_TO_ONE:
            raise ValueError(
                f"rate_basis {self.rate_basis.value!r} keeps labels, which label_map "
                f"{self.label_map.value!r} would change; for dirty labels set rate_basis 'all'"
            )


@hookimpl
def backdoorkit_attacks() -> Iterable[MethodInfo]:
    """The SIG attack."""
    yield MethodInfo(
        name="sig",
        summary="A faint sinusoid over images of the target class, which keep their label.",
        reference="Barni, Kallas, Tondi: A New Backdoor Attack in CNNs by Training Set Corruption "
        "without Label Poisoning, ICIP 2019, arXiv:1902.11237",
        implementation="backdoorkit_sig._attack:SIG",
        config=SIGConfig,
        stage=Stage.DATA,
        needs={Need.TRAINING_DATA},
        presets={
            "paper": {
                "delta": 20.0,
                "test_delta": 40.0,
                "rate_basis": "target-class",
                "poison_rate": 0.3,
            },
            "backdoorbench": {
                "delta": 40.0,
                "frequency": 6.0,
                "rate_basis": "all-within-target",
                "poison_rate": 0.1,
                "target": 0,
            },
            "abl-released": {
                "delta": 20.0,
                "frequency": 4.074366543152521,  # 0.8 radians per pixel at 32 pixels
                "wrapped_blend": True,
                "rate_basis": "target-class",
                "poison_rate": 0.8,
                "target": 0,
            },
            "dirty-label": {"rate_basis": "all", "poison_rate": 0.1},
        },
    )
