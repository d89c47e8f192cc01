"""Batch-norm statistics that belong to given weights."""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

from backdoorkit.api import ImageSet, batches

__all__ = ["estimate_statistics"]

_BATCH_SIZE: Final = 512


@torch.no_grad()
def estimate_statistics(
    model: nn.Module, data: ImageSet, device: torch.device, *, batch_size: int = _BATCH_SIZE
) -> None:
    """Set running means and variances of all norms to the averages over one pass of ``data``.

    In place. Every image counts the same; nothing is left of the statistics before. Only the norms
    are in train mode, so that dropout does not take part. Modes and momenta are left as they were.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None
    ]
    if not norms:
        return
    before = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    seen = 0
    for batch in batches(data, batch_size, device=device, merge_singleton=True):
        seen += len(batch)
        for norm in norms:
            norm.momentum = len(batch) / seen
        model(batch.images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, training in before:
        module.training = training
