"""Attention maps, and how far two of them are from each other."""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor

__all__ = ["attention", "attention_distance"]

#: added to the norm of a map, so that a map without any activation stays zero
_EPSILON: Final = 1e-6


def attention(features: Tensor, power: float = 2.0) -> Tensor:
    """Â = A / (‖A‖₂ + 1e-6) with A the sum over channels of |F|^p: N x H W, in float32.

    ``features`` F are N x C x H x W. Maps of the same size compare whatever the channels' numbers.
    """
    # |F|^p leaves the range of half precision for quite usual activations.
    energy = features.float().abs().pow(power).sum(dim=1).flatten(start_dim=1)
    length: Tensor = torch.linalg.vector_norm(energy, dim=1, keepdim=True)
    return energy / (length + _EPSILON)


def attention_distance(
    student: Tensor, teacher: Tensor, distance: Literal["squared", "norm", "mean"]
) -> Tensor:
    """Mean over the images of the distance of their attention maps (N x H W each); a scalar.

    ``squared`` is ‖Â_S − Â_T‖², ``norm`` its root, ``mean`` the squared distance over H W.
    """
    difference = student - teacher
    if distance == "norm":
        lengths: Tensor = torch.linalg.vector_norm(difference, dim=1)
        return lengths.mean()
    squares = difference.square()
    return squares.mean() if distance == "mean" else squares.sum(dim=1).mean()
