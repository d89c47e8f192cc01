"""DL-TND: a few clean images, and the cheapest ways to make them another class."""

from __future__ import annotations

import functools
import itertools
import logging
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from backdoorkit.api import DetectionResult, Detector, batches, frozen_copy
from backdoorkit_tnd import DataLimitedConfig
from backdoorkit_tnd._perturbation import (
    Found,
    descend,
    frozen_logits,
    hinge,
    perturb,
    search,
    single,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import nn

    from backdoorkit.api import Context, DetectionTask, ImageSet, Structure

__all__ = ["DataLimitedDetector", "Scores", "choose_images", "judge", "score_classes"]

_log = logging.getLogger(__name__)

#: images per forward pass; on a CPU small batches stay in the cache
_IMAGES_AT_ONCE: Final = {"cpu": 128}
_DEFAULT_IMAGES_AT_ONCE: Final = 4096
#: the least that a cosine can be: the score where no class has a mask that works
_NOTHING_FOUND: Final = -1.0


@attrs.frozen(kw_only=True, eq=False)
class Scores:
    """What the search found for each of K classes, on the CPU."""

    #: int64, K
    classes: Tensor
    #: K x N: cosine of what the universal and the image's own perturbation excite
    similarities: Tensor
    #: bool, K x N: the image is of another class, and counts
    counts: Tensor
    #: K: sum of the universal mask's values
    area: Tensor
    #: bool, K
    succeeded: Tensor
    #: K x C x H x W
    masks: Tensor
    patterns: Tensor


class DataLimitedDetector(Detector[DataLimitedConfig]):
    """Compares, class by class, one perturbation of all images with one of each image.

    Where a backdoor leads to a class, both take it and excite the same features.
    """

    def check(self, structure: Structure) -> None:
        if self.config.representation == "penultimate":
            structure.require_head("dl-tnd with representation = 'penultimate'")

    def run(self, task: DetectionTask, context: Context) -> DetectionResult:
        structure = context.structure(task.model)
        self.check(structure)
        # Only images get gradients: weights need none, which saves a third of the work.
        model = frozen_copy(task.model, task.clean.shape)
        positions = choose_images(model, task.clean, self.config.images_per_class, context)
        data = task.clean.subset(positions.to(task.clean.device))
        classes = torch.unique(data.labels).cpu()
        if len(classes) < 2:
            return _no_verdict(len(classes))
        images = data.images.to(context.device).float() / 255
        labels = data.labels.to(context.device)
        scores = score_classes(model, structure, images, labels, classes, self.config, context)
        return judge(scores, task.num_classes, self.config)


def _no_verdict(classes: int) -> DetectionResult:
    """Of a model that cannot be judged: without a threshold it is called neither this nor that."""
    reason = (
        f"the model classifies images of {classes} classes of the reserve correctly, and two are "
        "needed; enlarge the reserve, or look at a model that classifies"
    )
    _log.warning("dl-tnd: no verdict: %s", reason)
    return DetectionResult(score=_NOTHING_FOUND, details={"no_verdict": reason, "flagged": []})


def choose_images(model: nn.Module, data: ImageSet, count: int, context: Context) -> Tensor:
    """Positions (ascending) of ``count`` images of each class that ``model`` classifies right.

    Fewer of a class that has no more.
    """
    correct = torch.zeros(len(data), dtype=torch.bool)
    with torch.no_grad():
        for batch in batches(data, 128, device=context.device):
            hits = model(batch.images).argmax(dim=1) == batch.labels
            correct[batch.indices.cpu()] = hits.cpu()
    order = torch.randperm(len(data), generator=context.generator("images"))
    labels = torch.where(correct, data.labels.cpu(), -1)[order]
    # How many of the image's class came before it, in the drawn order.
    same = functional.one_hot(labels + 1, data.num_classes + 1)
    earlier = (same.cumsum(dim=0) - same).gather(1, labels[:, None] + 1)[:, 0]
    return order[(labels >= 0) & (earlier < count)].sort().values


def score_classes(
    model: nn.Module,
    structure: Structure | None,
    images: Tensor,
    labels: Tensor,
    classes: Tensor,
    options: DataLimitedConfig,
    context: Context,
) -> Scores:
    """Both perturbations and their similarity, for each of ``classes`` (int64).

    ``images`` (float32 in [0, 1], N x C x H x W) and ``labels`` are on the run's device.
    """
    at_once = options.images_at_once or _IMAGES_AT_ONCE.get(
        context.device.type, _DEFAULT_IMAGES_AT_ONCE
    )
    parts = torch.split(classes, max(1, at_once // len(images)))
    total = len(parts) * (options.rounds + 1) * options.iterations
    tracked = context.track(range(total), f"searching masks of {len(classes)} classes")
    steps = functools.partial(itertools.islice, tracked, options.iterations)
    some = functools.partial(
        _some_classes, model, structure, images, labels, options=options, context=context
    )
    found = [some(part.to(context.device), steps=steps) for part in parts]
    next(tracked, None)  # the progress ends here
    names = [field.name for field in attrs.fields(Scores)]
    return Scores(**{name: torch.cat([getattr(part, name) for part in found]) for name in names})


def _some_classes(
    model: nn.Module,
    structure: Structure | None,
    images: Tensor,
    labels: Tensor,
    classes: Tensor,
    options: DataLimitedConfig,
    context: Context,
    steps: Callable[[], Iterable[object]],
) -> Scores:
    logits = functools.partial(frozen_logits, model)
    universal = _universal(logits, images, labels, classes, options, context, steps)
    shape = (len(classes), *images.shape)
    mask, pattern, _, _ = descend(
        lambda stamped: single(logits(stamped), classes, options.margin),
        images,
        shape,
        torch.full((len(classes),), options.single_strength, device=images.device),
        steps=steps,
        mask_rate=options.single_rate,
        pattern_rate=options.single_pattern_rate,
        pattern_start=options.pattern_start,
    )
    passes = 2 * options.iterations * len(classes) * len(images)
    context.count(passes * (options.rounds + 1), 0)
    together, alone = (
        _representation(model, structure, perturb(images, m, p), options)
        for m, p in ((universal.mask, universal.pattern), (mask, pattern))
    )
    return Scores(
        classes=classes.cpu(),
        similarities=functional.cosine_similarity(together, alone, dim=-1).cpu(),
        counts=(labels[None] != classes[:, None]).cpu(),
        area=universal.area.cpu(),
        succeeded=universal.succeeded.cpu(),
        masks=universal.mask[:, 0].cpu(),
        patterns=universal.pattern[:, 0].cpu(),
    )


def _universal(
    logits: Any,
    images: Tensor,
    labels: Tensor,
    classes: Tensor,
    options: DataLimitedConfig,
    context: Context,
    steps: Callable[[], Iterable[object]],
) -> Found:
    run = functools.partial(
        descend,
        lambda stamped: hinge(logits(stamped), labels, classes, options.margin),
        images,
        (len(classes), 1, *images.shape[1:]),
        steps=steps,
        mask_rate=options.mask_rate,
        pattern_rate=options.pattern_rate,
        pattern_start=options.pattern_start,
    )
    return search(
        run,
        len(classes),
        first=options.first_strength,
        bounds=(options.least_strength, options.largest_strength),
        rounds=options.rounds,
        success_share=options.success_share,
        success_at=options.success_at,
        least_area=options.least_area,
        device=context.device,
    )


@torch.no_grad()
def _representation(
    model: nn.Module, structure: Structure | None, stamped: Tensor, options: DataLimitedConfig
) -> Tensor:
    """K x N x d, of K x N x C x H x W images."""
    if options.representation == "logits" or structure is None:
        return frozen_logits(model, stamped)
    features, _ = structure.features_and_logits(model, stamped.flatten(0, 1))
    return features.float().view(*stamped.shape[:2], -1)


def judge(scores: Scores, num_classes: int, options: DataLimitedConfig) -> DetectionResult:
    """The verdict: among the classes with the smallest masks, is one excited alike both ways?

    A class's score is the quantile of its similarities over images of other classes. Only classes
    whose mask works and is about as small as the smallest are suspects: without that gate any
    confident target looks alike.
    """
    quantiles = torch.tensor(
        [
            float(row[counts].double().quantile(options.quantile)) if counts.any() else torch.nan
            for row, counts in zip(scores.similarities, scores.counts, strict=True)
        ]
    )
    works = scores.succeeded & ~quantiles.isnan()
    ordered = scores.area[works].sort().values.tolist()
    smallest, second = (*ordered, torch.inf, torch.inf)[:2]
    gate = options.area_factor * smallest if options.area_factor else torch.inf
    suspects = works & (scores.area <= gate) & (smallest <= options.area_ratio * second)
    ranked = quantiles.where(suspects, _NOTHING_FOUND).argsort(descending=True, stable=True)
    flagged = [
        int(scores.classes[row])
        for row in ranked.tolist()
        if suspects[row] and float(quantiles[row]) > options.threshold
    ]
    complete = len(scores.classes) == num_classes
    by_class = dict(zip(scores.classes.tolist(), range(len(quantiles)), strict=True))
    return DetectionResult(
        score=float(quantiles[ranked[0]]) if suspects.any() else _NOTHING_FOUND,
        threshold=options.threshold,
        target=flagged[0] if flagged else None,
        details={
            "flagged": flagged,
            "suspect": int(scores.classes[ranked[0]]) if suspects.any() else None,
            "suspects": scores.classes[suspects].tolist(),
            "scores": {str(k): _number(quantiles[row]) for k, row in by_class.items()},
            "area_ratio": smallest / second if len(ordered) > 1 else None,
            "areas": {str(k): float(scores.area[row]) for k, row in by_class.items()},
            "succeeded": scores.classes[scores.succeeded].tolist(),
            "without_images": sorted(set(range(num_classes)) - set(by_class)),
            "images": int(scores.counts.shape[1]),
        },
        tensors={
            "classes": scores.classes,
            # By label only where no class is missing.
            ("masks" if complete else "masks_of_classes"): scores.masks,
            ("patterns" if complete else "patterns_of_classes"): scores.patterns,
            "similarities": scores.similarities,
        },
    )


def _number(value: Tensor) -> float | None:
    return None if bool(value.isnan()) else float(value)
