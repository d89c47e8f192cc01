"""Alternatives to gradient ascent: other things to do with the isolated samples, or without them.

The slides of the paper name them and give their results; what each does is a definition of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from backdoorkit.api import InputError, TrainingHooks, batches, quantize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Generator

    from backdoorkit.api import Batch, Context, ImageSet, Structure
    from backdoorkit_abl._isolation import Isolation

__all__ = [
    "LastLayers",
    "PixelNoise",
    "Relabelling",
    "SoftTargets",
    "last_modules",
    "load_all_but_head",
    "pseudo_labels",
    "read_weights",
    "soft_cross_entropy",
    "with_grad_noise",
    "with_labels",
]

# -- images ----------------------------------------------------------------------------------------


class PixelNoise(TrainingHooks):
    """Isolated images under Gaussian noise, drawn anew every time: clip(x + ε), ε ~ N(0, σ²)."""

    def __init__(self, mask: Tensor, deviation: float, generator: Generator) -> None:
        self._mask = mask
        self._deviation = deviation
        self._generator = generator

    def transform_batch(self, batch: Batch, epoch: int) -> Batch:
        images = batch.images
        noise = torch.randn(images.shape, generator=self._generator, device=images.device)
        noisy = (images + self._deviation * noise).clamp(0, 1)
        isolated = self._mask[batch.indices]
        return attrs.evolve(batch, images=torch.where(isolated[:, None, None, None], noisy, images))


def with_grad_noise(isolation: Isolation, step: float, context: Context) -> ImageSet:
    """D with isolated images changed to clip(x + ε · sign ∇_x ℓ(f(x), y)).

    The gradient is that of the model after stage 1, in eval mode, so that it is taken once.
    """
    model, isolated = isolation.model.eval(), isolation.isolated
    changed = []
    for batch in batches(isolated, 256, device=context.device):
        images = batch.images.requires_grad_(True)
        loss = functional.cross_entropy(model(images), batch.labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, images)
        changed.append(quantize(images.detach() + step * gradient.sign()))
    context.count(len(isolated), 0)
    return isolation.data.replaced(isolation.positions, torch.cat(changed), isolated.labels)


# -- labels ----------------------------------------------------------------------------------------


class Relabelling(TrainingHooks):
    """Other labels for the isolated samples in every epoch: random classes, or a permutation."""

    def __init__(
        self, isolation: Isolation, how: Literal["random", "permuted"], generator: Generator
    ) -> None:
        self._labels = isolation.data.labels.to(isolation.losses.device, copy=True)
        self._positions = isolation.positions
        self._own = self._labels[self._positions]
        self._num_classes = isolation.data.num_classes
        self._how = how
        self._generator = generator
        self._epoch = -1

    def transform_batch(self, batch: Batch, epoch: int) -> Batch:
        if epoch != self._epoch:
            self._epoch = epoch
            self._labels[self._positions] = self._draw()
        return attrs.evolve(batch, labels=self._labels[batch.indices])

    def _draw(self) -> Tensor:
        count, device = len(self._own), self._own.device
        if self._how == "permuted":
            return self._own[torch.randperm(count, generator=self._generator).to(device)]
        return torch.randint(self._num_classes, (count,), generator=self._generator).to(device)


def soft_cross_entropy(logits: Tensor, labels: Tensor, smoothing: Tensor) -> Tensor:
    """Cross-entropy (N) to (1 − α) onehot(y) + α / K, with α (N) of each sample."""
    log_probabilities = functional.log_softmax(logits.float(), dim=1)
    plain = -log_probabilities.gather(1, labels[:, None])[:, 0]
    uniform = -log_probabilities.mean(dim=1)
    return (1 - smoothing) * plain + smoothing * uniform


class SoftTargets(TrainingHooks):
    """Smoothed labels for the isolated samples: α = 1 is the uniform distribution."""

    def __init__(self, mask: Tensor, smoothing: float) -> None:
        self._mask = mask
        self._smoothing = smoothing

    def loss(self, logits: Tensor, batch: Batch, epoch: int) -> Tensor:
        smoothing = torch.where(
            self._mask[batch.indices], self._smoothing, self.options.label_smoothing
        )
        return soft_cross_entropy(logits, batch.labels, smoothing).mean()


def pseudo_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """The most likely class (N) of each sample that is not its label."""
    own = functional.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).argmax(dim=1)


def with_labels(isolation: Isolation, labels: Tensor) -> ImageSet:
    """D with other labels for the isolated samples."""
    return isolation.data.replaced(isolation.positions, isolation.isolated.images, labels)


# -- model -----------------------------------------------------------------------------------------


def last_modules(model: nn.Module, structure: Structure, count: int) -> list[str]:
    """The last ``count`` of trunk and head that have parameters, in execution order."""
    head = structure.require_head("abl --unlearning fine-tuning-last")
    names = [name for name in structure.trunk if name != head] + [head]
    trained = [name for name in names if any(True for _ in model.get_submodule(name).parameters())]
    return trained[-count:]


class LastLayers(TrainingHooks):
    """Trains the named modules alone; the others keep weights and running statistics.

    A context manager: afterwards everything can be trained again.
    """

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        self._model = model
        self._trained = {module for name in names for module in model.get_submodule(name).modules()}

    def __enter__(self) -> LastLayers:
        self._model.requires_grad_(False)
        for module in self._trained:
            module.requires_grad_(True)
        return self

    def __exit__(self, *_: object) -> None:
        self._model.requires_grad_(True)

    def backward(
        self, model: nn.Module, batch: Batch, compute_loss: Callable[[], Tensor]
    ) -> Tensor:
        # The loop puts the whole model into train mode at the start of every epoch.
        for module in model.modules():
            module.training = module in self._trained
        return super().backward(model, batch, compute_loss)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors of a ``.safetensors`` file; a format in which nothing can be executed."""
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        what = "is no .safetensors file" if path.is_file() else "does not exist"
        raise InputError(
            f"abl --unlearning fine-tuning-imagenet: the weights {path} {what}; give a "
            ".safetensors file with the state_dict of an ImageNet model"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a sound .safetensors file ({error}); copy or download it again"
        ) from error


def load_all_but_head(
    model: nn.Module, weights: Mapping[str, Tensor], head: str, path: Path
) -> None:
    """Put foreign ``weights`` into ``model``, whose last layer keeps its initial ones.

    The files know nothing of the normalisation that a model may have around it.

    Raises
    ------
    InputError
        where they are of another architecture.

    """
    own = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith(f"{head}.")
        and not name.endswith("num_batches_tracked")
        and (name in weights or name not in ("mean", "std"))
    }
    given = {name: weights.get(name, weights.get(name.removeprefix("network."))) for name in own}
    misfits = [
        name
        for name, value in own.items()
        if (found := given[name]) is None or found.shape != value.shape
    ]
    if misfits:
        raise InputError(
            f"{path} does not fit the victim's architecture: of {len(own)} tensors {len(misfits)} "
            f"are missing or of another shape, first {misfits[0]!r}; give ImageNet weights of the "
            "same architecture, or choose another unlearning method"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(given[name])
