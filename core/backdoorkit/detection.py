"""What a detection metric looks at: scores, and the truth that no detector knew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from backdoorkit.errors import ContractError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DetectionScores"]


@attrs.frozen(kw_only=True, eq=False)
class DetectionScores:
    """One detector's scores of many models, training samples or inputs, on the CPU.

    Higher is more suspicious.
    """

    of: Literal["models", "training samples", "inputs"]
    #: float64, N
    scores: Tensor
    #: bool, N: the model was attacked, the sample poisoned, the input triggered. Covers are not.
    positive: Tensor
    #: bool, N: what the detector itself flags; None where it has no rule
    flagged: Tensor | None = None
    #: bool, N: covers: triggered samples that keep their true label
    covers: Tensor | None = None
    #: bool, N: of models, whether the class that was named is the attack's target; None where no
    #: attack has one target
    named: Tensor | None = None

    def __attrs_post_init__(self) -> None:
        for name in ("scores", "positive", "flagged", "covers", "named"):
            value = getattr(self, name)
            if value is not None and value.shape != (len(self.scores),):
                raise ContractError(
                    f"expected {name} of shape ({len(self.scores)},), got {tuple(value.shape)}"
                )

    def __len__(self) -> int:
        return len(self.scores)
