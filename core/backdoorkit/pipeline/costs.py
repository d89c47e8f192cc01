"""What victims cost their attackers."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["AttackCost", "costs_grid"]


@attrs.frozen(kw_only=True)
class AttackCost:
    """What one victim cost its attacker, whether it was made in this run or found."""

    data: str
    model: str
    attack: str
    seed: int
    #: surrogates, encoders, optimised patterns
    assets_seconds: float = 0.0
    #: preparing the trigger and poisoning the training set, without the assets
    poisoning_seconds: float = 0.0
    training_seconds: float = 0.0
    #: images that went through gradient computations, in all of it
    samples_seen: int = 0
    gradient_steps: int = 0
    #: the attacker was given the test images, to choose among them
    chose_test_images: bool = False


def costs_grid(costs: Sequence[AttackCost]) -> tuple[list[str], list[list[str]]]:
    """Header and body of a table, as text: means over seeds, one line per attack."""
    varying = [name for name in ("data", "model") if len({getattr(c, name) for c in costs}) > 1]
    shown = [*varying, "attack"]
    by_names: dict[tuple[str, ...], list[AttackCost]] = {}
    for cost in costs:
        by_names.setdefault(tuple(getattr(cost, name) for name in shown), []).append(cost)
    body = [
        [
            *names,
            *(
                f"{statistics.fmean(getattr(cost, f'{part}_seconds') for cost in alike):.1f}"
                for part in ("assets", "poisoning", "training")
            ),
            f"{statistics.fmean(cost.samples_seen for cost in alike):.0f}",
        ]
        for names, alike in by_names.items()
    ]
    return [*shown, "assets s", "poisoning s", "training s", "samples seen"], body
