"""What enters the last layer over a whole set of images, and what removing some of it changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from backdoorkit import evaluation
from backdoorkit.errors import StructureError
from backdoorkit.models.structure import penultimate_features

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from backdoorkit.context import Context
    from backdoorkit.data.images import ImageSet
    from backdoorkit.models.structure import Structure

__all__ = ["collect_features", "predictions_without", "refuse_other_head", "require_linear_head"]


def require_linear_head(structure: Structure, method: str, advice: str) -> str:
    """The head's name; for methods that remove its inputs by zeroing columns of its weight.

    Raises
    ------
    StructureError
        where there is no head, or one that is not linear; the message ends in ``advice``.

    """
    name = structure.require_head(method)
    if (kind := structure.layer(name).kind) != "linear":
        raise StructureError(
            f"{method} prunes the inputs of a linear last layer, but {name!r} of "
            f"{structure.network} is of kind {kind!r}; {advice}"
        )
    return name


def refuse_other_head(
    method: str, features: Tensor, logits: Tensor, head: nn.Linear, advice: str
) -> None:
    """Raise StructureError where the logits are not ``head`` of the features (pooled since)."""
    with torch.no_grad():
        expected = head(features.to(head.weight.device)).cpu()
    if not torch.allclose(expected, logits, rtol=1e-2, atol=1e-2):
        raise StructureError(
            f"{method} removes units at the last linear layer, but here the logits are not what "
            f"that layer gives of its mean input; {advice}"
        )


def collect_features(
    model: nn.Module,
    structure: Structure,
    data: ImageSet,
    context: Context,
    *,
    change: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Penultimate features (N x d) and logits (N x K) of every image: float32, on the CPU.

    One pass in eval mode and true float32, without augmentation; modes are restored. Where the
    head reads a map or tokens, features are the mean over positions.

    Parameters
    ----------
    structure:
        Of ``model``; it must have a head.
    change:
        Applied to each batch of images (float32 in [0, 1], N x C x H x W) first, such as stamping
        a reversed trigger.

    """
    features: list[Tensor] = []
    with penultimate_features(model, structure.head) as capture:
        handle = model.register_forward_hook(
            lambda *_: features.append(capture.features.float().cpu())
        )
        try:
            logits = evaluation.predict(model, data, device=context.device, change=change)
        finally:
            handle.remove()
    return torch.cat(features), logits.cpu()


def predictions_without(
    features: Tensor, logits: Tensor, weight: Tensor, units: Tensor, *, columns: int = 1
) -> Iterator[Tensor]:
    """Predicted classes (int64, N) with the first 0, 1, ..., n of ``units`` removed, in turn.

    Removing a unit takes the product of its features with its columns of the last linear layer off
    the logits, so one forward pass serves all levels: they differ by updates of rank ``columns``,
    in float64. Nothing given is changed.

    Parameters
    ----------
    features, logits:
        N x d and N x K, as from :func:`collect_features`.
    weight:
        K x d, of the last linear layer.
    units:
        int64, n: what is removed, in this order.
    columns:
        Consecutive columns of ``weight`` that each unit owns; a divisor of d.

    """
    logits = logits.double().clone()
    features = features.double().reshape(len(features), -1, columns)
    weight = weight.detach().to(features).reshape(len(weight), -1, columns)
    yield logits.argmax(dim=1)
    for unit in units.tolist():
        logits -= features[:, unit] @ weight[:, unit].T
        yield logits.argmax(dim=1)
