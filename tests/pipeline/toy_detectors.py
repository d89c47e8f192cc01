"""Detectors that judge samples and inputs by the attack's white corner, and one that rates them."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from backdoorkit import MethodInfo, Need, hookimpl, option
from backdoorkit.api import (
    Context,
    DetectionMetric,
    DetectionResult,
    DetectionScores,
    DetectionTask,
    Detector,
    InputFilter,
    MetricValue,
    area_under_curve,
    new_figure,
)

#: inputs that filters were shown, by the number of their batch
SEEN: list[Tensor] = []


@attrs.frozen(kw_only=True)
class Behavior:
    fault: str = option("none", help="What is wrong with what it returns.")


class Corner(InputFilter):
    threshold = 0.99

    def score(self, images: Tensor) -> Tensor:
        SEEN.append(images)
        return images[..., -3:, -3:].mean(dim=(1, 2, 3))


class Inspector(Detector[Behavior]):
    """Scores training samples and inputs by how white their corner is; no word on the model."""

    def run(self, task: DetectionTask, context: Context) -> DetectionResult:
        assert not SEEN  # nothing is shown before the filter is made
        data = task.training_data
        scores = Corner().score(data.images.float() / 255)
        SEEN.clear()
        figure, (axes,) = new_figure()
        axes.plot([0, 1])
        result = DetectionResult(
            sample_scores=scores,
            flagged_samples=scores > 0.99,
            input_filter=Corner(),
            figures={"scores": figure},
            captions={"scores": "What was seen."},
        )
        faults = {
            "none": {},
            "one short": {"sample_scores": scores[:-1]},
            "no numbers": {"sample_scores": scores * torch.nan},
            "flags": {"flagged_samples": scores},
            "no filter": {"input_filter": 3},
            "silent": {"sample_scores": None, "flagged_samples": None, "input_filter": None},
        }
        return attrs.evolve(result, **faults[self.config.fault])


class Weigher(Detector[Behavior]):
    """A score of the model."""

    def run(self, task: DetectionTask, context: Context) -> DetectionResult:
        images = torch.zeros(1, *task.image_shape)
        images[..., -4:, -4:] = 1
        with torch.no_grad():
            score = float(task.model(images).softmax(dim=1)[0, 0])
        return DetectionResult(score=score, threshold=0.5, target=0)


class ToyRating(DetectionMetric[Behavior]):
    def rate(self, scores: DetectionScores) -> dict[str, MetricValue]:
        if self.config.fault == "raise":
            raise RuntimeError("unforeseen")
        area = area_under_curve(scores.scores[scores.positive], scores.scores[~scores.positive])
        named = 0 if scores.named is None else int(scores.named.sum())
        return {
            "AUROC": MetricValue(value=area, interval=(0.5, None)),
            "count": MetricValue(value=float(len(scores)), is_share=False),
            "positives": MetricValue(value=float(scores.positive.sum()), is_share=False),
            "named": MetricValue(value=float(named), is_share=False),
        }


def _info(name: str, implementation: str, *needs: Need) -> MethodInfo:
    return MethodInfo(
        name=name,
        summary="A toy.",
        implementation=f"toy_detectors:{implementation}",
        config=Behavior,
        needs=needs,
    )


@hookimpl
def backdoorkit_detectors() -> list[MethodInfo]:
    return [
        _info("inspector", "Inspector", Need.WEIGHTS, Need.TRAINING_DATA),
        _info("weigher", "Weigher", Need.WEIGHTS),
    ]


@hookimpl
def backdoorkit_metrics() -> list[MethodInfo]:
    return [_info("toy-rating", "ToyRating", Need.VERDICTS)]
