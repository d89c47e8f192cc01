"""Stage 2: fine-tuning that also keeps the gradient's norm, the neurons' activeness, small."""

from __future__ import annotations

from typing import Literal

from backdoorkit.api import SecondGradient

__all__ = ["ActivenessAwareTuning"]


class ActivenessAwareTuning(SecondGradient):
    """Steps along (1 − α) g₁ + α g₂, the gradient of cross-entropy + α r ‖g₁‖ up to O(r).

    g₁ is the gradient at θ and g₂ the one at θ + r g₁ / ‖g₁‖. With ``norm="tensor"`` every tensor
    is stepped by r along its own gradient: the penalty is then the sum of the tensors' norms.
    """

    def __init__(
        self, *, perturbation: float, blend: float, norm: Literal["tensor", "global"]
    ) -> None:
        super().__init__(radius=perturbation, blend=blend, norm=norm)
