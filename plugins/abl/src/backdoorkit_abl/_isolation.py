"""Stage 1: learn what is learned first and nothing more, then take the samples of lowest loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoorkit.api import Context, ImageSet, InputError, TrainingHooks

if TYPE_CHECKING:
    from backdoorkit.api import Batch
    from backdoorkit_abl import ABLConfig, LossCurvesConfig

__all__ = [
    "Isolation",
    "IsolationTraining",
    "flooding",
    "isolate",
    "isolated_count",
    "local_gradient_ascent",
    "lowest",
    "sample_losses",
    "share_count",
]


def local_gradient_ascent(
    losses: Tensor, gamma: float, reduction: Literal["batch", "sample"] = "batch"
) -> Tensor:
    """sign(ℓ − γ) · ℓ of the mean loss ℓ, or the mean of it over each sample's; a scalar.

    ``losses`` (N) are cross-entropies. Below γ the loss ascends, so that it stays there.
    """
    if reduction == "batch":
        losses = losses.mean()
    return (torch.sign(losses.detach() - gamma) * losses).mean()


def flooding(losses: Tensor, level: float) -> Tensor:
    """|ℓ − b| + b of the mean loss ℓ: another value than local gradient ascent, the same gradient.

    Ishida et al., ICML 2020.
    """
    return (losses.mean() - level).abs() + level


class IsolationTraining(TrainingHooks):
    """Training of stage 1."""

    def __init__(self, config: ABLConfig | LossCurvesConfig) -> None:
        self._config = config

    def loss(self, logits: Tensor, batch: Batch, epoch: int) -> Tensor:
        config = self._config
        losses = functional.cross_entropy(logits, batch.labels, reduction="none")
        match config.isolation_loss:
            case "lga":
                return local_gradient_ascent(losses, config.gamma, config.lga_reduction)
            case "flooding":
                return flooding(losses, config.gamma)
            case "cross-entropy":
                return losses.mean()


def share_count(size: int, rate: float) -> int:
    """⌊p · n⌋ of the real numbers: 0.29 of 100 is 29, although the product is just below it."""
    return math.floor(rate * size + 1e-9)


def isolated_count(size: int, rate: float) -> int:
    """How many of ``size`` samples are isolated.

    Raises
    ------
    InputError
        where that is none.

    """
    count = share_count(size, rate)
    if count < 1:
        raise InputError(
            f"abl would isolate no sample: a share of {rate:g} of {size} training images is less "
            "than one; raise isolation_rate"
        )
    return count


def lowest(losses: Tensor, count: int) -> Tensor:
    """Positions (int64, ascending) of the ``count`` lowest losses; of equal ones the first."""
    order = torch.sort(losses, stable=True).indices
    return order[:count].sort().values


def sample_losses(model: nn.Module, data: ImageSet, context: Context) -> Tensor:
    """Cross-entropy of every sample (float64, N) in eval mode, without augmentation.

    As softplus(log Σ_{j≠y} exp z_j − z_y), which tells well-learned samples apart where the usual
    way of computing it rounds all of them to zero.
    """
    logits = context.predict(model, data).double()
    labels = data.labels.to(logits.device)[:, None]
    others = logits.scatter(1, labels, -torch.inf).logsumexp(dim=1)
    return functional.softplus(others - logits.gather(1, labels)[:, 0])


@attrs.frozen(eq=False, kw_only=True)
class Isolation:
    """What stage 1 leaves: a backdoored model, and who seems to be poisoned."""

    model: nn.Module
    #: the training set D
    data: ImageSet
    #: float64, N: loss of every sample at the turning epoch
    losses: Tensor
    #: int64, ascending: positions of the isolated samples, on the run's device
    positions: Tensor

    @property
    def mask(self) -> Tensor:
        """bool, N: isolated."""
        mask = torch.zeros(len(self.losses), dtype=torch.bool, device=self.losses.device)
        mask[self.positions] = True
        return mask

    @property
    def isolated(self) -> ImageSet:
        """The isolated samples D̂_b, in the order of the training set."""
        return self.data.subset(self.positions)

    @property
    def rest(self) -> ImageSet:
        """All others, D̂_c, in the order of the training set."""
        return self.data.subset((~self.mask).nonzero().flatten())


def isolate(model: nn.Module, data: ImageSet, config: ABLConfig, context: Context) -> Isolation:
    """Train the untrained ``model`` up to the turning epoch, and isolate by its losses."""
    count = isolated_count(len(data), config.isolation_rate)
    options = attrs.evolve(
        config,
        epochs=config.turning_epoch,
        learning_rate=config.isolation_learning_rate,
        schedule="constant",
        # What is learned first shows best on the samples as they are.
        crop_padding=0,
        horizontal_flip=False,
    )
    context.fit(model, data, options, hooks=IsolationTraining(config))
    losses = sample_losses(model, data, context)
    return Isolation(model=model, data=data, losses=losses, positions=lowest(losses, count))
