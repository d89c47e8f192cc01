"""The entropy of predictions under superposition, and the boundary below which it is suspicious."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from backdoorkit.api import DetectionResult, Detector, InputError, InputFilter, batches
from backdoorkit_strip import StripConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from backdoorkit.api import Context, DetectionTask, ImageSet

__all__ = ["Strip", "SuperpositionFilter", "entropy", "fit_boundary"]

_IMAGES_AT_ONCE: Final = {"cpu": 128}
_DEFAULT_IMAGES_AT_ONCE: Final = 4096
#: images whose entropies are computed before the next are fetched
_BATCH_SIZE: Final = 64


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy in bits over the last dimension of logits."""
    logarithms = logits.double().log_softmax(dim=-1)
    return -(logarithms.exp() * logarithms).sum(dim=-1) / math.log(2)


def fit_boundary(entropies: Tensor, config: StripConfig) -> float:
    """Entropy below which ``false_rejections`` of clean inputs lie, from a sample of them."""
    if config.boundary == "empirical":
        return float(torch.quantile(entropies, config.false_rejections))
    return float(
        entropies.mean()
        + entropies.std(correction=0) * NormalDist().inv_cdf(config.false_rejections)
    )


class SuperpositionFilter(InputFilter):
    """Scores an input by minus the mean entropy of its superpositions with the overlays.

    The overlays are the same for all inputs: scores are repeatable, and comparable.
    """

    def __init__(
        self,
        query: Callable[[Tensor], Tensor],
        overlays: Tensor,
        config: StripConfig,
        boundary: float = -math.inf,
    ) -> None:
        """``overlays`` are float32 in [0, 1], M x C x H x W, on the run's device."""
        self._query, self._overlays, self._config = query, overlays, config
        self._boundary = boundary

    @property
    def threshold(self) -> float:
        return -self._boundary

    def score(self, images: Tensor) -> Tensor:
        return -self.entropies(images)

    def entropies(self, images: Tensor) -> Tensor:
        """Mean entropy (float64, N) of the predictions of each image's superpositions."""
        count = len(self._overlays)
        at_once = self._config.images_at_once or _IMAGES_AT_ONCE.get(
            images.device.type, _DEFAULT_IMAGES_AT_ONCE
        )
        total = torch.zeros(len(images), dtype=torch.float64, device=images.device)
        for few in torch.split(self._overlays, max(1, at_once // max(1, len(images)))):
            mixed = self.superimpose(images[:, None], few[None])
            logits = self._query(mixed.flatten(0, 1))
            total += entropy(logits).view(len(images), len(few)).sum(dim=1)
        return total / count

    def superimpose(self, images: Tensor, overlays: Tensor) -> Tensor:
        """The weighted sum, cut off at white."""
        weighted = self._config.input_weight * images + self._config.overlay_weight * overlays
        return weighted.clamp(0, 1)


class Strip(Detector[StripConfig]):
    """Watches inputs; of the model itself it says nothing."""

    def run(self, task: DetectionTask, context: Context) -> DetectionResult:
        clean = task.clean
        overlays, fitted = _split(clean, self.config.overlays, context)
        images = overlays.images.to(context.device).float() / 255
        unfitted = SuperpositionFilter(task.query, images, self.config)
        parts = [
            unfitted.entropies(batch.images)
            for batch in context.track(
                batches(fitted, _BATCH_SIZE, device=context.device), "strip: entropies"
            )
        ]
        entropies = torch.cat(parts).cpu()
        boundary = fit_boundary(entropies, self.config)
        return DetectionResult(
            input_filter=SuperpositionFilter(task.query, images, self.config, boundary),
            details={
                "boundary_bits": boundary,
                "overlays": len(overlays),
                "fitted_on": len(fitted),
                "mean_bits": float(entropies.mean()),
                "rejected_of_reserve": float((entropies < boundary).double().mean()),
            },
            tensors={"overlays": overlays.images.cpu(), "entropies": entropies},
        )


def _split(clean: ImageSet, wanted: int, context: Context) -> tuple[ImageSet, ImageSet]:
    """Overlays, and the other images, on which the boundary is fitted: half at least."""
    if len(clean) < 4:
        raise InputError(
            f"strip needs clean images to lay over others and more to fit its boundary on, at "
            f"least 4 together, but the reserve has {len(clean)}; raise its size"
        )
    order = torch.randperm(len(clean), generator=context.generator("overlays"))
    count = min(wanted, len(clean) // 2)
    order = order.to(clean.device)
    return clean.subset(order[:count]), clean.subset(order[count:])
