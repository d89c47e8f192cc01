"""The TrojanNN attack (Liu et al., NDSS 2018): by poisoning, or by retraining."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backdoorkit.api import Attack, train_surrogate
from backdoorkit_trojannn import TrojanNNConfig
from backdoorkit_trojannn._patch import PLANTINGS, PatchTrigger, start_patch
from backdoorkit_trojannn._retraining import RetrainHooks
from backdoorkit_trojannn._search import find_patch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from backdoorkit.api import AttackHooks, Context, ImageSet, Trigger

__all__ = ["TrojanNN"]


class TrojanNN(Attack[TrojanNNConfig]):
    """A patch that drives inner neurons, and a model that learns to listen to them.

    By default it is found on a clean surrogate and poisons a training set, which is what
    BackdoorBench and ABL make of the attack. With ``mode = "retrain"`` it is the paper's: the
    attacker owns the trained model and no data.
    """

    def prepare(self, data: ImageSet, context: Context) -> PatchTrigger:
        """Train the surrogate on ``data``, choose its neurons and optimise the patch for them.

        To be retrained, a model must be there first: then this is only what its patch starts from.
        """
        if self.config.mode == "retrain":
            return start_patch(self.config, data.shape, context)
        surrogate = train_surrogate(data, context, self.config)
        return find_patch(surrogate, data, self.config, context)

    def restore(self, state: Mapping[str, Tensor]) -> PatchTrigger:
        """The trigger from its stored tensors."""
        facts = dict(state)
        return PatchTrigger(
            pattern=facts.pop("pattern"),
            mask=facts.pop("mask").bool(),
            planting=PLANTINGS[int(facts.pop("planting"))],
            facts=facts,
        )

    def control(self, trigger: Trigger, data: ImageSet, context: Context) -> AttackHooks | None:
        """The attack at the end of a clean training, with ``mode = "retrain"``."""
        if self.config.mode == "retrain":
            return RetrainHooks(trigger, data, self.config, context)
        return super().control(trigger, data, context)
