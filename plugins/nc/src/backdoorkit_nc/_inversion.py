"""Trigger inversion: the smallest mask and pattern that send every image to a class.

min E[ℓ(f(A(x, m, Δ)), k)] + λ ‖m‖₁ for all classes k at once. In eval mode samples do not see each
other and Adam works element by element, so every class gets the bits it would get alone.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from backdoorkit.api import InputError, batches, frozen_copy
from backdoorkit_nc._controller import ControllerState, advance

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from torch import nn

    from backdoorkit.api import Batch, Context, ImageSet
    from backdoorkit_nc import InversionOptions

__all__ = [
    "Adam",
    "Triggers",
    "images_at_once",
    "invert",
    "stamp",
    "stamp_all",
    "stamp_gradient",
    "success_rates",
    "to_box",
    "to_free",
]

#: images per forward pass at 32 x 32; larger batches gain nothing more on a CPU
_IMAGES_AT_ONCE: Final = {"cpu": 512}
_DEFAULT_IMAGES_AT_ONCE: Final = 4096
#: keeps the inverse of the box finite in float32
_MARGIN: Final = 1e-6


@attrs.frozen(kw_only=True, eq=False)
class Triggers:
    """One reversed trigger per class, on the CPU."""

    #: m: float32 in [0, 1], K x 1 x H x W
    masks: Tensor
    #: Δ: float32 in [0, 1], K x C x H x W
    patterns: Tensor
    #: float32, K: share of the reserve that the stored trigger sends to its class
    success: Tensor
    #: bool, K: whether a mask ever reached the success threshold
    converged: Tensor
    #: int64, K: outer steps until the class was finished
    steps: Tensor

    @property
    def norms(self) -> Tensor:
        """‖m‖₁ (float64, K), in pixels."""
        return self.masks.double().sum(dim=(1, 2, 3))


def stamp(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """A(x, m, Δ) = (1 − m) x + m Δ; everything broadcasts."""
    return torch.lerp(images, pattern, mask)


def stamp_all(images: Tensor, masks: Tensor, patterns: Tensor) -> Tensor:
    """Every image under every trigger: K B x C x H x W, trigger by trigger, channels last."""
    rows = (tensor.permute(0, 2, 3, 1) for tensor in (images, patterns, masks))
    image, pattern, mask = (tensor.contiguous() for tensor in rows)
    stamped = torch.lerp(image[None], pattern[:, None], mask[:, None])
    return stamped.flatten(0, 1).permute(0, 3, 1, 2)


def stamp_gradient(gradient: Tensor, images: Tensor, masks: Tensor, patterns: Tensor) -> Tensor:
    """Gradient (K x (1 + C) x H x W) of mask and pattern from that of :func:`stamp_all`.

    d / dm = Σ_b Σ_c g (Δ − x), d / dΔ = Σ_b g m, with only two sums over images.
    """
    image = images.permute(0, 2, 3, 1).contiguous()
    rows = gradient.permute(0, 2, 3, 1).contiguous().view(len(masks), *image.shape)
    total = rows.sum(dim=1).permute(0, 3, 1, 2)
    weighted = (rows * image).sum(dim=(1, 4))[:, None]
    by_mask = (total * patterns).sum(dim=1, keepdim=True) - weighted
    return torch.cat([by_mask, total * masks], dim=1)


def to_box(free: Tensor) -> Tensor:
    """[0, 1] from unbounded values: (tanh θ + 1) / 2."""
    return (free.tanh() + 1) / 2


def to_free(boxed: Tensor) -> Tensor:
    """The inverse of :func:`to_box`."""
    return torch.atanh(2 * boxed.clamp(_MARGIN, 1 - _MARGIN) - 1)


class Adam:
    """Adam on one tensor whose rows may be dropped on the way (torch's own cannot)."""

    def __init__(
        self, values: Tensor, rate: float, betas: tuple[float, float] = (0.5, 0.9)
    ) -> None:
        self.values = values
        self._rate, self._betas = rate, betas
        self._mean, self._square = torch.zeros_like(values), torch.zeros_like(values)
        self._steps = 0

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        """One step along ``gradient``, in place."""
        self._steps += 1
        first, second = self._betas
        self._mean.lerp_(gradient, 1 - first)
        self._square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = (self._square / (1 - second**self._steps)).sqrt_().add_(1e-8)
        self.values.addcdiv_(self._mean, root, value=-self._rate / (1 - first**self._steps))

    def select(self, rows: Tensor) -> None:
        """Go on with the rows where the mask holds."""
        self.values, self._mean, self._square = (
            tensor[rows] for tensor in (self.values, self._mean, self._square)
        )


def invert(
    model: nn.Module,
    data: ImageSet,
    classes: Sequence[int],
    options: InversionOptions,
    context: Context,
) -> Triggers:
    """Reverse a trigger for each of ``classes``; ``model`` is left untouched.

    All images of ``data`` are used, those of the class itself too; labels are not looked at.
    """
    if not len(data):
        raise InputError("nc needs clean samples, but the reserve is empty; raise its size")
    # Only images get gradients: weights need none, which saves a third of the work.
    frozen = frozen_copy(model, data.shape).to(context.device)
    images = images_at_once(data.shape, context.device)
    count = options.classes_at_once or max(1, images // options.inversion_batch_size)
    data = data.to(context.device)
    parts = [
        _Inversion(frozen, data, classes[first : first + count], options, context).run()
        for first in range(0, len(classes), count)
    ]
    fields = (field.name for field in attrs.fields(Triggers))
    return Triggers(**{name: torch.cat([getattr(part, name) for part in parts]) for name in fields})


def images_at_once(shape: tuple[int, int, int], device: torch.device) -> int:
    """Images of C x H x W that go through a model together."""
    _, height, width = shape
    images = _IMAGES_AT_ONCE.get(device.type, _DEFAULT_IMAGES_AT_ONCE)
    return max(1, images * 32 * 32 // (height * width))


class _Inversion:
    """Some classes that are optimised together; the finished ones drop out."""

    def __init__(
        self,
        model: nn.Module,
        data: ImageSet,
        classes: Sequence[int],
        options: InversionOptions,
        context: Context,
    ) -> None:
        self.model, self.data, self.options, self.context = model, data, options, context
        self.classes = torch.tensor(list(classes), device=context.device)
        # Mask and pattern in one tensor: channel 0 is the mask.
        start = torch.stack([self.first_values(label) for label in classes])
        self.adam = Adam(to_free(start).to(context.device), options.inversion_rate)

    def first_values(self, label: int) -> Tensor:
        channels, height, width = self.data.shape
        shape = (1 + channels, height, width)
        if self.options.start == "constant":
            return to_box(torch.ones(shape))
        generator = self.context.generator(f"first trigger of class {label}")
        return torch.rand(shape, generator=generator)

    def run(self) -> Triggers:
        options, count = self.options, len(self.classes)
        active = torch.arange(count, device=self.context.device)
        state = ControllerState.start(count, options, self.context.device)
        best = to_box(self.adam.values)
        converged = torch.zeros_like(active, dtype=torch.bool)
        steps = torch.zeros_like(active)
        label = f"reversing triggers of {count} classes"
        with contextlib.closing(self.endless_batches()) as stream:
            for _ in self.context.track(range(options.inversion_steps), label):
                success, norm = self.outer_step(self.classes[active], state.penalty, stream)
                state, improved, finished = advance(state, success, norm, options)
                converged[active] |= improved
                # As long as nothing works, the latest is kept.
                keeps = (improved | ~converged[active])[:, None, None, None]
                best[active] = torch.where(keeps, to_box(self.adam.values), best[active])
                steps[active] += 1
                if bool(finished.any()):  # the host waits for the device here, once per outer step
                    goes_on = ~finished
                    active, state = active[goes_on], state.select(goes_on)
                    self.adam.select(goes_on)
                if not len(active):
                    break
        masks, patterns = best[:, :1], best[:, 1:]
        success = success_rates(
            self.model, self.data, masks, patterns, self.classes, self.batch_size
        )
        return Triggers(
            masks=masks.cpu(),
            patterns=patterns.cpu(),
            success=success.cpu(),
            converged=converged.cpu(),
            steps=steps.cpu(),
        )

    @property
    def batch_size(self) -> int:
        return min(self.options.inversion_batch_size, len(self.data))

    def endless_batches(self) -> Generator[Batch]:
        """Full batches, in a new order each pass; the same for every class and chunk."""
        generator = self.context.generator("inversion batches")
        device = self.context.device
        while True:
            yield from batches(
                self.data, self.batch_size, generator=generator, drop_last=True, device=device
            )

    def outer_step(
        self, classes: Tensor, penalty: Tensor, stream: Iterator[Batch]
    ) -> tuple[Tensor, Tensor]:
        """Mean success and mean norm of ``classes`` over the Adam steps of one outer step."""
        count = self.options.inversion_batches or len(self.data) // self.batch_size
        hits, norms = torch.zeros_like(penalty), torch.zeros_like(penalty)
        for _ in range(count):
            correct, norm = self.inner_step(classes, penalty, next(stream).images)
            hits += correct
            norms += norm
        return hits / (count * self.batch_size), norms / count

    def inner_step(self, classes: Tensor, penalty: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """One Adam step; images sent to each class, and norms of the masks, before it."""
        boxed = to_box(self.adam.values)
        stamped = stamp_all(images, boxed[:, :1], boxed[:, 1:]).requires_grad_()
        targets = classes.repeat_interleave(len(images))
        with self.context.autocast():
            logits = self.model(stamped)
        losses = functional.cross_entropy(logits.float(), targets, reduction="sum")
        (gradient,) = torch.autograd.grad(losses / len(images), stamped)
        sloped = stamp_gradient(gradient, images, boxed[:, :1], boxed[:, 1:])
        sloped[:, :1] += penalty[:, None, None, None]
        # d box / d free = (1 - tanh²) / 2
        self.adam.step(sloped * (2 * boxed * (1 - boxed)))
        self.context.count(len(stamped), 1)
        hits = (logits.detach().argmax(dim=1) == targets).view(len(classes), -1).sum(dim=1)
        return hits, boxed[:, 0].sum(dim=(1, 2))


@torch.inference_mode()
def success_rates(
    model: nn.Module,
    data: ImageSet,
    masks: Tensor,
    patterns: Tensor,
    classes: Tensor,
    batch_size: int,
    *,
    others_only: bool = False,
) -> Tensor:
    """Share (float32, one per class) of stamped images that ``model`` sends to the class.

    ``others_only`` leaves out images whose label is the class already.
    """
    hits = torch.zeros(len(classes), device=classes.device)
    counted = torch.zeros_like(hits)
    for batch in batches(data, batch_size, device=classes.device):
        stamped = stamp_all(batch.images, masks, patterns)
        logits = model(stamped)
        is_hit = logits.argmax(dim=1).view(len(classes), -1) == classes[:, None]
        counts = (batch.labels != classes[:, None]) if others_only else torch.ones_like(is_hit)
        hits += (is_hit & counts).sum(dim=1)
        counted += counts.sum(dim=1)
    return hits / counted.clamp(min=1)
