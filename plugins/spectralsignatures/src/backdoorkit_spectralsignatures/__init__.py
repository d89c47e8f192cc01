"""Spectral signatures: poisoned samples stand out along the main direction of their class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from backdoorkit import MethodInfo, Need, Stage, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SpectralConfig", "backdoorkit_detectors"]


@attrs.frozen(kw_only=True)
class SpectralConfig:
    """Options of the detector."""

    poison_share: float = option(
        0.1, gt=0, lt=1, symbol="ε", help="Most poisoned samples to expect, as a share of a class."
    )
    removal_factor: float = option(
        1.5, gt=0, help="Samples that are flagged in each class, as a multiple of that."
    )


@hookimpl
def backdoorkit_detectors() -> Iterable[MethodInfo]:
    """The detector spectral signatures."""
    yield MethodInfo(
        name="spectral-signatures",
        summary="Spectral signatures: flag training samples far out on their class's main axis.",
        reference="Tran, Li and Madry, Spectral Signatures in Backdoor Attacks, NeurIPS 2018",
        implementation="backdoorkit_spectralsignatures._detector:SpectralSignatures",
        config=SpectralConfig,
        stage=Stage.DATA,
        needs={Need.WEIGHTS, Need.TRAINING_DATA},
        presets={"paper": {"removal_factor": 1.5}},
    )
