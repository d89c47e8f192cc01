"""The blended attack (Chen et al., arXiv:1712.05526)."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Final

import attrs
import torch

from backdoorkit.api import Attack, Trigger, require_image_shape
from backdoorkit_blended import BlendedConfig
from backdoorkit_blended._patterns import draw_cartoon, draw_noise, noise_by_sample, read_picture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from backdoorkit.api import Context, ImageSet

__all__ = ["BlendTrigger", "Blended", "FixedPattern", "NoisePerSample"]

#: streams of noise per sample: no test image gets the noise of a training image
_TRAINING: Final = 0
_TEST: Final = 1


@attrs.frozen(eq=False)
class BlendTrigger(Trigger):
    """T(x) = (1 - α) x + α p. ``shape`` is C x H x W of the images; ``alpha`` (α) in [0, 1]."""

    shape: tuple[int, int, int]
    alpha: float

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Triggered copies of ``images`` (N x C x H x W)."""
        del labels
        require_image_shape(images, self.shape, "the pattern")
        return torch.lerp(images, self.patterns(indices.to(images.device)), self.alpha)

    @abc.abstractmethod
    def patterns(self, indices: Tensor) -> Tensor:
        """What is mixed in (p), on the device of ``indices``: 1 or N x C x H x W, in [0, 1]."""

    @abc.abstractmethod
    def for_training(self, alpha: float) -> BlendTrigger:
        """The trigger as it is planted in the training set."""


@attrs.frozen(eq=False)
class FixedPattern(BlendTrigger):
    """One ``pattern``, float32 in [0, 1], 1 x C x H x W, for all samples."""

    pattern: Tensor

    def patterns(self, indices: Tensor) -> Tensor:
        return self.pattern.to(indices.device)

    def for_training(self, alpha: float) -> FixedPattern:
        return attrs.evolve(self, alpha=alpha)

    def state(self) -> dict[str, Tensor]:
        """``pattern`` and ``alpha``."""
        return {"pattern": self.pattern, "alpha": torch.tensor(self.alpha, dtype=torch.float64)}


@attrs.frozen(eq=False)
class NoisePerSample(BlendTrigger):
    """Noise of its own for every sample, which depends on the sample's id and on ``key``."""

    key: int
    grey: bool
    stream: int = _TEST

    def patterns(self, indices: Tensor) -> Tensor:
        channels, height, width = self.shape
        shape = (1 if self.grey else channels, height, width)
        return noise_by_sample(indices, shape, self.key, self.stream).expand(-1, *self.shape)

    def for_training(self, alpha: float) -> NoisePerSample:
        return attrs.evolve(self, alpha=alpha, stream=_TRAINING)

    def state(self) -> dict[str, Tensor]:
        """``key``, ``grey``, ``shape`` and ``alpha``."""
        return {
            "key": torch.tensor(self.key),
            "grey": torch.tensor(self.grey),
            "shape": torch.tensor(self.shape),
            "alpha": torch.tensor(self.alpha, dtype=torch.float64),
        }


class Blended(Attack[BlendedConfig]):
    """One faint pattern over the whole image (the "blended injection" of Chen et al. 2017).

    The paper weakens the pattern in training and may use it stronger at test time: ``alpha`` and
    ``test_alpha``. The pattern is fixed unless ``resample`` asks for what released code does.
    """

    def prepare(self, data: ImageSet, context: Context) -> BlendTrigger:
        """Make the pattern for the images' shape; noise and drawing come from the run's seed."""
        config, shape = self.config, data.shape
        alpha = config.alpha if config.test_alpha is None else config.test_alpha
        generator = context.generator("pattern")
        if config.resample:
            key = int(torch.randint(2**31, (), generator=generator))
            return NoisePerSample(shape, alpha, key, config.grey_noise)
        if config.pattern_image is not None:
            pattern = read_picture(config.pattern_image, shape)
        elif config.pattern == "procedural":
            pattern = draw_cartoon(shape, generator)
        else:
            pattern = draw_noise(shape, generator, grey=config.grey_noise)
        return FixedPattern(shape, alpha, pattern[None].to(context.device))

    def restore(self, state: Mapping[str, Tensor]) -> BlendTrigger:
        """The trigger from its stored tensors."""
        alpha = state["alpha"].item()
        if "pattern" in state:
            _, channels, height, width = state["pattern"].shape
            return FixedPattern((channels, height, width), alpha, state["pattern"])
        channels, height, width = state["shape"].tolist()
        grey = bool(state["grey"])
        return NoisePerSample((channels, height, width), alpha, int(state["key"]), grey)

    def for_training(self, trigger: Trigger) -> BlendTrigger:
        """With the training share of the pattern."""
        assert isinstance(trigger, BlendTrigger)
        return trigger.for_training(self.config.alpha)
