"""DF-TND: no data at all; noise is changed until it excites the last layer's inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from torch import Tensor

from backdoorkit.api import DetectionResult, Detector, StructureError, frozen_copy
from backdoorkit_tnd import DataFreeConfig
from backdoorkit_tnd._perturbation import perturb, shrink

if TYPE_CHECKING:
    from torch import nn

    from backdoorkit.api import Context, DetectionTask, Structure

__all__ = ["DataFreeDetector", "increases", "judge", "onto_simplex"]

#: makes a median absolute deviation estimate the standard deviation of a normal distribution
_CONSISTENCY: Final = 1.4826
#: the deviation is at least this share of the median: nearly equal classes make no outlier
_LEAST_DEVIATION: Final = 0.02
_LARGEST_RATIO: Final = 100.0
_FEWEST_CLASSES: Final = 3


class DataFreeDetector(Detector[DataFreeConfig]):
    """How much does each logit rise when the features are driven up? One alone is a backdoor's."""

    def check(self, structure: Structure) -> None:
        structure.require_head("df-tnd")
        if self.config.rule == "scale-free" and structure.num_classes < _FEWEST_CLASSES:
            raise StructureError(
                f"df-tnd compares classes with each other and needs at least {_FEWEST_CLASSES}, "
                f"but {structure.network} has {structure.num_classes}; choose rule = 'increase'"
            )

    def run(self, task: DetectionTask, context: Context) -> DetectionResult:
        structure = context.structure(task.model)
        self.check(structure)
        shape = (self.config.restarts, self.config.seeds, *task.image_shape)
        seeds = torch.rand(shape, generator=context.generator("seeds")).to(context.device)
        model = frozen_copy(task.model, task.image_shape)
        found = _Search(model, structure, seeds, self.config, context).run()
        return judge(found, self.config)


@attrs.frozen(kw_only=True, eq=False)
class Increases:
    """What the search reached, on the CPU."""

    #: L: float64, K: rise of each logit, mean over seeds and median over restarts
    rise: Tensor
    #: R x N x C x H x W
    masks: Tensor
    patterns: Tensor
    #: R x d
    weights: Tensor
    #: objective before each step, summed over restarts
    objective: Tensor


class _Search:
    """Projected ascent of Σ w r(x̂) − γ ‖m‖₁ over masks, patterns and weights; R sets of N seeds."""

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        seeds: Tensor,
        options: DataFreeConfig,
        context: Context,
    ) -> None:
        self.model, self.structure, self.seeds = model, structure, seeds
        self.options, self.context = options, context
        self.mask = torch.full_like(seeds, options.mask_start)
        self.pattern = torch.full_like(seeds, options.pattern_start)
        with torch.no_grad():
            features, self.before = self.forward(seeds)
        units = features.shape[-1]
        self.weights = torch.full((len(seeds), units), 1 / units, device=seeds.device)
        self.objective: list[Tensor] = []

    def run(self) -> Increases:
        for _ in self.context.track(range(self.options.iterations), "exciting features"):
            self.step()
        if self.options.refinement:
            for tensor in (self.mask, self.pattern):
                tensor.copy_(tensor.mean(dim=1, keepdim=True).expand_as(tensor).clone())
        for _ in self.context.track(range(self.options.refinement), "refining"):
            self.step()
        with torch.no_grad():
            _, after = self.forward(self.changed(self.mask, self.pattern))
        rise = (after - self.before).double().mean(dim=1)
        return Increases(
            rise=rise.quantile(0.5, dim=0).cpu(),
            masks=self.mask.cpu(),
            patterns=self.pattern.cpu(),
            weights=self.weights.cpu(),
            objective=torch.stack(self.objective).cpu(),
        )

    def changed(self, mask: Tensor, pattern: Tensor) -> Tensor:
        return perturb(self.seeds, mask, pattern).clamp(0, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (R x N x d) and logits (R x N x K)."""
        features, logits = self.structure.features_and_logits(self.model, images.flatten(0, 1))
        self.context.count(images.shape[0] * images.shape[1], 0)
        return (part.float().view(*images.shape[:2], -1) for part in (features, logits))  # type: ignore[return-value]

    def step(self) -> None:
        """One step of all three, from gradients at the same point."""
        rate, penalty = self.options.rate, self.options.penalty
        mask, pattern, weights = (
            tensor.detach().requires_grad_() for tensor in (self.mask, self.pattern, self.weights)
        )
        features, _ = self.forward(self.changed(mask, pattern))
        gain = (features * weights[:, None]).sum(dim=2).mean(dim=1)
        # Σ over the masks of all seeds of a set, as released; masks are not negative.
        norm = mask.sum(dim=(1, 2, 3, 4))
        self.objective.append((gain - penalty * norm).detach().sum())
        loss = gain - penalty * norm if self.options.penalty_twice else gain
        by_mask, by_pattern, by_weights = torch.autograd.grad(
            loss.sum(), (mask, pattern, weights), allow_unused=True
        )
        with torch.no_grad():
            self.mask = shrink(mask + rate * by_mask.sign(), rate * penalty)
            self.pattern = (pattern + rate * by_pattern.sign()).clamp(0, 1)
            if self.options.weights != "uniform":
                move = by_weights.sign() if self.options.weights == "sign" else by_weights
                self.weights = onto_simplex(weights + rate * move)


def increases(
    model: nn.Module, structure: Structure, seeds: Tensor, options: DataFreeConfig, context: Context
) -> Increases:
    """Run the search from ``seeds`` (R x N x C x H x W in [0, 1]); ``model`` needs no gradients."""
    return _Search(model, structure, seeds, options, context).run()


def onto_simplex(values: Tensor) -> Tensor:
    """The nearest points with entries of at least 0 and sum 1, along the last dimension.

    By sorting, so that it also holds where the entries sum to less than 1.
    """
    ordered = values.sort(dim=-1, descending=True).values
    excess = ordered.cumsum(dim=-1) - 1
    count = torch.arange(1, values.shape[-1] + 1, device=values.device)
    kept = (ordered - excess / count > 0).sum(dim=-1, keepdim=True)
    return (values - excess.gather(-1, kept - 1) / kept).clamp(min=0)


def judge(found: Increases, options: DataFreeConfig) -> DetectionResult:
    """The verdict on the rises of the logits."""
    rise = found.rise
    ordered = rise.sort(descending=True).values
    middle = rise.quantile(0.5)
    deviation = _CONSISTENCY * (rise - middle).abs().quantile(0.5)
    floor = max(_LEAST_DEVIATION * abs(float(middle)), 1e-12)
    # Where nothing rises, nothing stands out.
    rises = float(ordered[0]) > 0
    deviations = float((ordered[0] - middle) / deviation.clamp(min=floor)) if rises else 0.0
    second = float(ordered[1]) if len(ordered) > 1 else 0.0
    ratio = min(float(ordered[0]) / max(second, 1e-12), _LARGEST_RATIO) if rises else 0.0
    details: dict[str, Any] = {
        "increases": rise.tolist(),
        "suspect": int(rise.argmax()),
        "deviations": deviations,
        "ratio": ratio,
        "largest_weight": float(found.weights.max()),
        "mask_share": float(found.masks.mean()),
    }
    if options.rule == "increase":
        score, threshold = float(ordered[0]), options.threshold
        flagged = (rise > threshold).nonzero().flatten().tolist()
    else:
        # Both conditions in one number: above 1 where both hold.
        score, threshold = min(deviations / options.deviations, ratio / options.ratio), 1.0
        flagged = [int(rise.argmax())] if score > threshold else []
    flagged.sort(key=lambda label: -float(rise[label]))
    return DetectionResult(
        score=score,
        threshold=threshold,
        target=flagged[0] if flagged else None,
        details={**details, "flagged": flagged},
        tensors={
            "increases": rise,
            "seed_masks": found.masks,
            "seed_patterns": found.patterns,
            "weights": found.weights,
            "objective": found.objective,
        },
    )
