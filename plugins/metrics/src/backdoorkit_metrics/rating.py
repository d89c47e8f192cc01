"""The defense effectiveness rating as a formula of four rates. Imports no torch."""

from __future__ import annotations

__all__ = ["defense_effectiveness_rating"]


def defense_effectiveness_rating(
    accuracy_before: float, attack_before: float, accuracy_after: float, attack_after: float
) -> float:
    """DER = (max(0, ASR_0 - ASR_1) - max(0, ACC_0 - ACC_1) + 1) / 2.

    All four are shares in [0, 1], before (0) and after (1) the defense, and unrounded; so is the
    result. One half means that nothing was gained: a rise of accuracy is not rewarded, and a rise
    of attack success is not punished. Average over attacks the ratings, not the rates.

    Raises
    ------
    ValueError
        for a rate outside [0, 1], such as a percentage.

    """
    for rate in (accuracy_before, attack_before, accuracy_after, attack_after):
        if not 0 <= rate <= 1:
            raise ValueError(f"rates are shares in [0, 1], not {rate!r}: divide percentages by 100")
    gain = max(0.0, attack_before - attack_after)
    loss = max(0.0, accuracy_before - accuracy_after)
    return (gain - loss + 1) / 2
