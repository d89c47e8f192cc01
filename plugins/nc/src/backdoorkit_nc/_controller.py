"""The weight λ of the mask's norm, steered per class so that the reversed trigger keeps working."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

if TYPE_CHECKING:
    from backdoorkit_nc import InversionOptions

__all__ = ["ControllerState", "advance"]


@attrs.frozen(kw_only=True, eq=False)
class ControllerState:
    """What is remembered between outer steps; every tensor has one entry per class."""

    #: λ
    penalty: Tensor
    #: successful steps in a row while λ is still zero
    waiting: Tensor
    #: steps in a row with enough success
    successes: Tensor
    #: steps in a row without
    failures: Tensor
    #: whether λ was ever raised
    was_raised: Tensor
    #: whether λ was ever lowered
    was_lowered: Tensor
    #: steps since the smallest norm last shrank by enough
    stalled: Tensor
    #: smallest norm of a working mask; infinite before there is one
    best_norm: Tensor

    @classmethod
    def start(
        cls, classes: int, options: InversionOptions, device: torch.device
    ) -> ControllerState:
        """Before the first step."""

        def filled(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((classes,), value, dtype=dtype, device=device)

        penalty = options.penalty if options.penalty_start == "at-once" else 0.0
        return cls(
            penalty=filled(penalty, torch.float32),
            waiting=filled(0, torch.int64),
            successes=filled(0, torch.int64),
            failures=filled(0, torch.int64),
            was_raised=filled(0, torch.bool),
            was_lowered=filled(0, torch.bool),
            stalled=filled(0, torch.int64),
            best_norm=filled(torch.inf, torch.float32),
        )

    def select(self, classes: Tensor) -> ControllerState:
        """The entries where the mask ``classes`` (bool) holds."""
        kept = {name: value[classes] for name, value in attrs.asdict(self, recurse=False).items()}
        return ControllerState(**kept)


def advance(
    state: ControllerState, success: Tensor, norm: Tensor, options: InversionOptions
) -> tuple[ControllerState, Tensor, Tensor]:
    """The state after an outer step, whose masks to keep as best so far, and who is finished.

    Parameters
    ----------
    state:
        The state before; not changed.
    success:
        Mean success of each class's trigger during the step, in [0, 1].
    norm:
        Mean L1 norm of its mask during the step, in pixels.

    """
    works = success >= options.success_threshold
    improved = works & (norm < state.best_norm)
    best = torch.where(improved, norm, state.best_norm)
    # Before the first working mask both sides are infinite and nothing has stalled.
    progressed = (best < options.stop_factor * state.best_norm) | best.isinf()
    stalled = torch.where(progressed, 0, state.stalled + 1)
    finished = state.was_raised & state.was_lowered & (stalled >= options.stop_patience)

    waits = works & (state.penalty == 0)
    waiting = torch.where(waits, state.waiting + 1, 0)
    begins = waiting >= options.penalty_patience
    penalty = torch.where(begins, options.penalty, state.penalty)

    successes = torch.where(works, torch.where(begins, 0, state.successes) + 1, 0)
    failures = torch.where(works, 0, state.failures + 1)
    raises = successes >= options.penalty_patience
    lowers = failures >= options.penalty_patience
    penalty = torch.where(raises, penalty * options.penalty_factor, penalty)
    penalty = torch.where(lowers, penalty / options.penalty_factor**1.5, penalty)
    after = ControllerState(
        penalty=penalty,
        waiting=waiting,
        successes=torch.where(raises, 0, successes),
        failures=torch.where(lowers, 0, failures),
        was_raised=(state.was_raised & ~begins) | raises,
        was_lowered=(state.was_lowered & ~begins) | lowers,
        stalled=stalled,
        best_norm=best,
    )
    return after, improved, finished
