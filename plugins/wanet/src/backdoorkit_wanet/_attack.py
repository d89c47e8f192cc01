"""The WaNet attack (Nguyen and Tran, arXiv:2102.10369)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch
from torch.nn import functional

from backdoorkit.api import Attack, InputError, Trigger, require_image_shape, uniform_by_sample
from backdoorkit_wanet import WaNetConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from backdoorkit.api import Context, ImageSet

__all__ = ["NoisyWarp", "WaNet", "Warp", "attack_grid", "control_grid", "identity_grid"]


def identity_grid(height: int, width: int) -> Tensor:
    """Coordinates that leave an image as it is: 1 x H x W x 2, (column, row) in [-1, 1]."""
    rows, columns = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    return torch.stack([columns, rows], dim=-1)[None]


def control_grid(size: int, generator: torch.Generator) -> Tensor:
    """P: uniform in [-1, 1], 1 x 2 x k x k, divided by its mean absolute value."""
    points = torch.rand(1, 2, size, size, generator=generator) * 2 - 1
    return points / points.abs().mean()


def attack_grid(
    control: Tensor, height: int, width: int, strength: float, rescale: float
) -> Tensor:
    """g = clamp((g0 + s n / H) r), 1 x H x W x 2, with n the control grid scaled up bicubically.

    The paper's images are square; of others, each axis is divided by its own length, so that the
    warp is as many pixels in both.
    """
    field = functional.interpolate(
        control, size=(height, width), mode="bicubic", align_corners=True
    ).permute(0, 2, 3, 1)
    lengths = torch.tensor([width, height], dtype=torch.float32)
    warped = (identity_grid(height, width) + strength * field / lengths) * rescale
    return warped.clamp(-1, 1)


def _sampled(images: Tensor, grid: Tensor) -> Tensor:
    """``images`` looked up at ``grid`` (N x H x W x 2), in float32."""
    made = functional.grid_sample(images.float(), grid, mode="bilinear", align_corners=True)
    # Weights of neighbours sum to 1 only up to rounding.
    return made.clamp(0, 1)


@attrs.frozen(eq=False)
class Warp(Trigger):
    """T(x): the image looked up at the attack grid, the same for every sample."""

    #: float32 in [-1, 1], 1 x H x W x 2, (column, row)
    grid: Tensor
    #: P, from which the grid was made
    control: Tensor
    #: of the noise that covers get
    key: int

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Warped copies of ``images`` (N x C x H x W)."""
        del labels, indices
        self.require(images)
        return _sampled(images, self.grid.to(images.device).expand(len(images), -1, -1, -1))

    def state(self) -> dict[str, Tensor]:
        """``grid``, ``control`` and ``key``."""
        return {"grid": self.grid, "control": self.control, "key": torch.tensor(self.key)}

    def require(self, images: Tensor) -> None:
        """Refuse images of another size than the grid's."""
        require_image_shape(images, self.grid.shape[1:3], "the warp")


@attrs.frozen(eq=False)
class NoisyWarp(Trigger):
    """A cover: the attack grid with uniform noise of up to one half pixel at every point.

    The noise belongs to the sample and to ``stream``, whatever batch the sample is in.
    """

    warp: Warp
    stream: int

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Warped copies of ``images`` (N x C x H x W), each by a grid of its own."""
        del labels
        self.warp.require(images)
        height, width = images.shape[2:]
        lengths = torch.tensor([width, height], dtype=torch.float32, device=images.device)
        ids = indices.to(images.device)
        noise = uniform_by_sample(ids, (height, width, 2), self.warp.key, self.stream) * 2 - 1
        grid = self.warp.grid.to(images.device) + noise / lengths
        return _sampled(images, grid.clamp(-1, 1))

    def state(self) -> dict[str, Tensor]:
        """Those of the warp, and ``stream``."""
        return {**self.warp.state(), "stream": torch.tensor(self.stream)}


class WaNet(Attack[WaNetConfig]):
    """An elastic warp as the trigger; covers with noise keep the model from learning "warped".

    In the paper's attack the first samples of each shuffled batch are warped and relabelled, the
    next are covers with noise drawn anew, all before the augmentation: the core's poisoning batch
    by batch. ``index_policy = "fixed"`` makes a training set instead.
    """

    def prepare(self, data: ImageSet, context: Context) -> Warp:
        """Draw the control grid for the images' size."""
        config = self.config
        _, height, width = data.shape
        if min(height, width) < 2:
            raise InputError(f"a warp needs images of at least 2x2 pixels, not {height}x{width}")
        control = control_grid(config.grid_size, context.generator("control grid"))
        grid = attack_grid(control, height, width, config.strength, config.rescale)
        key = int(torch.randint(2**31, (), generator=context.generator("noise of covers")))
        return Warp(grid.to(context.device), control, key)

    def restore(self, state: Mapping[str, Tensor]) -> Warp:
        """The trigger from its stored tensors."""
        return Warp(state["grid"], state["control"], int(state["key"]))

    def cover(self, trigger: Trigger, epoch: int | None = None) -> NoisyWarp:
        """The warp with noise: in controlled training another in every epoch."""
        assert isinstance(trigger, Warp)
        return NoisyWarp(trigger, 0 if epoch is None else epoch + 1)
