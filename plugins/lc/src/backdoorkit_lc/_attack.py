"""The label-consistent attack (Turner, Tsipras, Madry, arXiv:1912.02771)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch

from backdoorkit import SurrogateOptions
from backdoorkit.api import (
    Attack,
    InputError,
    Trigger,
    choose_positions,
    quantize,
    train_surrogate,
)
from backdoorkit_lc import LCConfig
from backdoorkit_lc._adversarial import AdversarialTraining, Ascent, ascend
from backdoorkit_lc._corners import CornerTrigger, corner_signs
from backdoorkit_lc._interpolation import interpolate, train_autoencoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from backdoorkit.api import Context, ImageSet, PoisonedSet

__all__ = ["LC"]

#: images at once at 32 x 32; fewer of larger ones
_CHUNK: Final = 256
_ASCENT_OPTIONS: Final = ("norm", "epsilon", "step_size", "steps", "random_start")
#: what a robust surrogate is trained against, as Madry et al. do on CIFAR-10
_TRAINING_ASCENT: Final = Ascent(norm="linf", radius=8 / 255, step=2 / 255, steps=7)


class LC(Attack[LCConfig]):
    """Images of the target class whose own features no longer tell the class, so the patches must.

    Only training images are made hard; a test image gets the patches and nothing else.
    """

    def prepare(self, data: ImageSet, context: Context) -> CornerTrigger:
        """Place the patches; draws nothing at random."""
        _, height, width = data.shape
        config = self.config
        signs = corner_signs(height, width, corners=config.corners, size=config.size)
        return CornerTrigger(signs.to(context.device), config.amplitude)

    def restore(self, state: Mapping[str, Tensor]) -> CornerTrigger:
        """The trigger from its stored tensors."""
        return CornerTrigger(state["signs"], state["amplitude"].item())

    def poison(self, data: ImageSet, trigger: Trigger, context: Context) -> PoisonedSet:
        """Draw samples of the target class, make them hard, then put the patches on."""
        config = self.config
        chosen = choose_positions(
            data.labels, config, data.num_classes, context.generator("poisoned indices")
        )
        if config.images != "plain" and len(chosen):
            hard = self._hard_images(data, chosen, context)
            data = data.replaced(chosen, hard.to(data.device), data.labels[chosen])
        # Draws the same samples again: from the same labels, by the same generator.
        return super().poison(data, trigger, context)

    def _hard_images(self, data: ImageSet, chosen: Tensor, context: Context) -> Tensor:
        """uint8 images of the samples at ``chosen``, from the store where they are there."""
        config = self.config
        # Beside another attack, this one is given what the other has left.
        decided_by = {"data": _digest(data.ids), "chosen": _digest(data.ids[chosen])}
        if config.images == "adversarial":
            names = (*_ASCENT_OPTIONS, *_surrogate_options())
            make = self._adversarial
        else:
            names = ("interpolation", "latent", "autoencoder_epochs", "target")
            make = self._interpolated
        decided_by |= {name: getattr(config, name) for name in names}
        made = context.asset(
            f"{config.images} images", decided_by, lambda: make(data, chosen, context)
        )
        images = made.pop("images")
        context.note(**{name: value.item() for name, value in made.items()})
        return images

    def _adversarial(self, data: ImageSet, chosen: Tensor, context: Context) -> dict[str, Tensor]:
        """Images on which a surrogate is wrong, and what share of them it recognises."""
        surrogate, ascent = self._surrogate(data, context), self._ascent()
        starts = context.generator("starts")
        parts, recognised = [], torch.zeros(2, dtype=torch.float64, device=context.device)
        chunks = _chunks(chosen, data)
        for positions in context.track(chunks, "making images adversarial"):
            images = data.fetch(positions).to(context.device).float() / 255
            labels = data.labels[positions].to(context.device)
            start = ascent.anywhere(images, starts) if self.config.random_start else None
            parts.append(quantize(ascend(surrogate, images, labels, ascent, context, start)))
            for row, shown in enumerate((images, parts[-1].float() / 255)):
                recognised[row] += _right(surrogate, shown, labels)
        before, after = recognised / len(chosen)
        return {"images": torch.cat(parts), "recognised_before": before, "recognised_after": after}

    def _surrogate(self, data: ImageSet, context: Context) -> nn.Module:
        facts: dict[str, Any] = {"data": _digest(data.ids)}
        if not self.config.robust_surrogate:
            return train_surrogate(data, context, self.config, facts=facts)
        facts["ascent"] = attrs.asdict(_TRAINING_ASCENT)
        hooks = AdversarialTraining(_TRAINING_ASCENT, context)
        return train_surrogate(data, context, self.config, hooks=hooks, facts=facts)

    def _ascent(self) -> Ascent:
        config = self.config
        return Ascent(
            norm=config.norm,
            radius=config.epsilon / 255,
            step=config.step_size / 255,
            steps=config.steps,
        )

    def _interpolated(self, data: ImageSet, chosen: Tensor, context: Context) -> dict[str, Tensor]:
        """Images drawn towards others, of other classes, and their mean change in grey levels."""
        config = self.config
        model = train_autoencoder(data, config.latent, config.autoencoder_epochs, context)
        others = (data.labels != config.target).nonzero().flatten()
        if len(others) == 0:
            raise InputError(
                f"there are only images of the target class {config.target}: none to draw them to"
            )
        drawn = torch.randint(len(others), (len(chosen),), generator=context.generator("partners"))
        partners = others[drawn.to(others.device)]
        parts, change = [], torch.zeros((), dtype=torch.float64, device=context.device)
        for places in _chunks(torch.arange(len(chosen), device=chosen.device), data):
            images, drawn_to = (
                data.fetch(of[places]).to(context.device).float() / 255 for of in (chosen, partners)
            )
            parts.append(quantize(interpolate(model, images, drawn_to, config.interpolation)))
            change += (parts[-1] - 255 * images).abs().double().mean((1, 2, 3)).sum()
        return {"images": torch.cat(parts), "mean_change": change / len(chosen)}


def _surrogate_options() -> tuple[str, ...]:
    names = (field.name for field in attrs.fields(SurrogateOptions))
    return ("robust_surrogate", *(name for name in names if name.startswith("surrogate")))


@torch.no_grad()
def _right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """How many of ``images`` the model classifies as labelled."""
    right: Tensor = model(images).argmax(1) == labels
    return right.sum()


def _chunks(positions: Tensor, data: ImageSet) -> tuple[Tensor, ...]:
    pixels = data.shape[1] * data.shape[2]
    return torch.split(positions, max(1, _CHUNK * 32 * 32 // pixels))


def _digest(ids: Tensor) -> str:
    """A short name for these samples."""
    return hashlib.sha256(ids.cpu().numpy().tobytes()).hexdigest()[:16]
