"""Activation clustering: a poisoned class falls into two clusters, one of them small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from backdoorkit import MethodInfo, Need, Stage, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ClusteringConfig", "backdoorkit_detectors"]


@attrs.frozen(kw_only=True)
class ClusteringConfig:
    """Options of the detector."""

    reduction: Literal["ica", "pca"] = option(
        "ica", help="How features are reduced: independent or principal components."
    )
    dimensions: int = option(10, ge=1, help="Components that are kept.")
    starts: int = option(10, ge=1, help="Runs of 2-means from different points; the best counts.")
    rule: Literal["size", "silhouette"] = option(
        "size",
        help="What a class is flagged by: a small cluster, or clusters that are well apart.",
    )
    size_threshold: float = option(
        0.35, gt=0, le=0.5, help="Share of its class below which a cluster is small."
    )
    silhouette_threshold: float = option(
        0.15, ge=-1, le=1, help="Mean silhouette above which clusters are well apart."
    )


@hookimpl
def backdoorkit_detectors() -> Iterable[MethodInfo]:
    """The detector activation clustering."""
    yield MethodInfo(
        name="activation-clustering",
        summary="Activation clustering: split each class's features; a small part is poison.",
        reference="Chen, Carvalho, Baracaldo, Ludwig, Edwards, Lee, Molloy and Srivastava, "
        "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering, SafeAI 2019",
        implementation="backdoorkit_activationclustering._detector:ActivationClustering",
        config=ClusteringConfig,
        stage=Stage.DATA,
        needs={Need.WEIGHTS, Need.TRAINING_DATA},
        presets={"paper": {"reduction": "ica", "dimensions": 10}},
    )
