"""What a detector's input filter says of test images, after it was fitted without them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from backdoorkit.data.batches import batches
from backdoorkit.errors import ContractError
from backdoorkit.pipeline.envelope import seeded

if TYPE_CHECKING:
    from backdoorkit.context import Context
    from backdoorkit.contracts import InputFilter
    from backdoorkit.data.images import ImageSet
    from backdoorkit.pipeline.plan import Step
    from backdoorkit.pipeline.workshop import Workshop

__all__ = ["screen"]

_BATCH_SIZE: Final = 128


def screen(
    workshop: Workshop, step: Step, input_filter: InputFilter, context: Context
) -> dict[str, Tensor]:
    """Scores of clean and, after an attack, of triggered test images.

    ``clean.scores`` (float64, N) with ``clean.ids``; ``triggered.scores`` with ``triggered.ids``
    and ``triggered.counts`` (bool): whether the image counts for the attack's success, which is
    whether it is attacked and its true class is not the wanted one.
    """
    test = workshop.part(step.inputs["data"], "test")
    with seeded(context):
        kept = {"clean.scores": _scores(input_filter, test, context), "clean.ids": test.ids.cpu()}
        planted = workshop.planted_tests(step.inputs["victim"])
        if planted is not None:
            triggered = planted[0]
            targets, labels = triggered.targets.cpu(), triggered.images.labels.cpu()
            kept["triggered.scores"] = _scores(input_filter, triggered.images, context)
            kept["triggered.ids"] = triggered.images.ids.cpu()
            kept["triggered.counts"] = (targets >= 0) & (targets != labels)
    return kept


@torch.inference_mode()
def _scores(input_filter: InputFilter, data: ImageSet, context: Context) -> Tensor:
    parts = []
    for batch in batches(data, _BATCH_SIZE, device=context.device):
        scores: Tensor = input_filter.score(batch.images)
        if scores.shape != (len(batch),) or bool(scores.isnan().any()):
            raise ContractError(
                f"{context.method}: expected the input filter to give {len(batch)} numbers, got "
                f"shape {tuple(scores.shape)}, {int(scores.isnan().sum())} of them no numbers"
            )
        parts.append(scores.double().cpu())
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
