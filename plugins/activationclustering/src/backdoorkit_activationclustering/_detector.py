"""Per class: reduce the features, split them in two, and look at the parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from backdoorkit.api import DetectionResult, Detector, collect_features
from backdoorkit_activationclustering import ClusteringConfig
from backdoorkit_activationclustering._clustering import reduce, silhouette, two_means

if TYPE_CHECKING:
    from torch import Tensor

    from backdoorkit.api import Context, DetectionTask, Structure

__all__ = ["ActivationClustering"]

#: of fewer samples no two clusters can be told apart
_FEWEST_SAMPLES = 4


class ActivationClustering(Detector[ClusteringConfig]):
    """Says which classes are poisoned, and flags the smaller part of those."""

    def check(self, structure: Structure) -> None:
        structure.require_head("activation-clustering")

    def run(self, task: DetectionTask, context: Context) -> DetectionResult:
        structure = context.structure(task.model)
        self.check(structure)
        data = task.training_data
        features, _ = collect_features(task.model, structure, data, context)
        labels = data.labels.cpu()
        scores = torch.full((len(data),), -1.0, dtype=torch.float64)
        flagged = torch.zeros(len(data), dtype=torch.bool)
        by_class: dict[int, float] = {}
        facts: dict[str, dict[str, float]] = {}
        for label in context.track(torch.unique(labels).tolist(), "activation clustering"):
            members = (labels == label).nonzero().flatten()
            if len(members) < _FEWEST_SAMPLES:
                continue
            small, margins, share, apart = self._split(features[members], label, context)
            facts[str(label)] = {"share": share, "silhouette": apart}
            by_class[label] = 1 - share if self.config.rule == "size" else apart
            is_poisoned = by_class[label] > self._threshold()
            # Ours: the paper only flags. Samples of flagged classes are above all others, and what
            # is nearer to the small part is above 2, which is what is flagged.
            scores[members] = margins + 2.0 * is_poisoned
            flagged[members] = small & is_poisoned
        suspects = sorted(by_class, key=lambda label: -by_class[label])
        poisoned = [label for label in suspects if by_class[label] > self._threshold()]
        return DetectionResult(
            score=by_class[suspects[0]] if suspects else 0.0,
            threshold=self._threshold(),
            target=poisoned[0] if poisoned else None,
            sample_scores=scores,
            flagged_samples=flagged,
            details={"classes": facts, "flagged": poisoned, "flagged_samples": int(flagged.sum())},
        )

    def _threshold(self) -> float:
        """Of a class's score: the share of its larger part, or the silhouette."""
        if self.config.rule == "size":
            return 1 - self.config.size_threshold
        return self.config.silhouette_threshold

    def _split(
        self, features: Tensor, label: int, context: Context
    ) -> tuple[Tensor, Tensor, float, float]:
        """Of one class: who is in the small part, margins in [−1, 1], its share, silhouette."""
        config, generator = self.config, context.generator(f"clusters of class {label}")
        points = reduce(features, config.dimensions, config.reduction, generator)
        if not points.shape[1]:  # all features are equal
            nobody = torch.zeros(len(features), dtype=torch.bool)
            return nobody, torch.zeros(len(features), dtype=torch.float64), 0.5, 0.0
        clusters = two_means(points, config.starts, generator)
        to_small, to_large = torch.cdist(points, clusters.centres).unbind(dim=1)
        between = (clusters.centres[0] - clusters.centres[1]).norm().clamp(min=1e-300)
        margins = (to_large - to_small) / between
        return clusters.small, margins, clusters.share, silhouette(points, clusters.small)
