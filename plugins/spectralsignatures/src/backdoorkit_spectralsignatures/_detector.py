"""Per class: centre the features, take the first right singular vector, square the projections."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backdoorkit.api import DetectionResult, Detector, collect_features
from backdoorkit_spectralsignatures import SpectralConfig

if TYPE_CHECKING:
    from backdoorkit.api import Context, DetectionTask, Structure

__all__ = ["SpectralSignatures", "projections"]


class SpectralSignatures(Detector[SpectralConfig]):
    """Scores training samples; of the model as a whole it says nothing."""

    def check(self, structure: Structure) -> None:
        structure.require_head("spectral-signatures")

    def run(self, task: DetectionTask, context: Context) -> DetectionResult:
        structure = context.structure(task.model)
        self.check(structure)
        data = task.training_data
        features, _ = collect_features(task.model, structure, data, context)
        labels = data.labels.cpu()
        scores = torch.zeros(len(data), dtype=torch.float64)
        flagged = torch.zeros(len(data), dtype=torch.bool)
        first, shares = {}, {}
        for label in torch.unique(labels).tolist():
            members = (labels == label).nonzero().flatten()
            squares, singular = projections(features[members])
            scores[members] = squares
            flagged[members[self._farthest(squares)]] = True
            first[str(label)] = float(singular[0])
            energy = float(singular.square().sum())
            shares[str(label)] = float(singular[0] ** 2) / energy if energy else 0.0
        return DetectionResult(
            sample_scores=scores,
            flagged_samples=flagged,
            details={
                "flagged": int(flagged.sum()),
                "singular_values": first,
                "energy_shares": shares,
            },
        )

    def _farthest(self, squares: Tensor) -> Tensor:
        """Positions of the samples that are removed: at most all of them."""
        share = self.config.removal_factor * self.config.poison_share
        # Rounded, because 1.5 times 0.2 is a little more than 0.3 in binary.
        count = min(len(squares), math.ceil(round(share * len(squares), 9)))
        return squares.argsort(descending=True, stable=True)[:count]


def projections(features: Tensor) -> tuple[Tensor, Tensor]:
    """τ_i = ((r_i − r̄) · v)² (float64, n) of features r (n x d); also all singular values of the
    centred features, the largest first.
    """
    centred = features.double() - features.double().mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    return (centred @ vectors[:, -1]).square(), values.clamp(min=0).sqrt().flip(0)
