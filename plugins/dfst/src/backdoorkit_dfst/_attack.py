"""The DFST attack (Cheng et al., AAAI 2021, arXiv:2012.11212)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch

from backdoorkit.api import (
    NOT_ATTACKED,
    Attack,
    InputError,
    PerBatchPoisoning,
    Trigger,
    find_structure,
    map_labels,
    train_surrogate,
)
from backdoorkit_dfst import DFSTConfig
from backdoorkit_dfst._generator import train_generator
from backdoorkit_dfst._injector import InjectorTraining, identity_injector, inject
from backdoorkit_dfst._styles import (
    ColourStyle,
    NetworkStyle,
    Style,
    draw_sunrise,
    restore_style,
    style_statistics,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from backdoorkit.api import Context, EpochMetrics, ImageSet

__all__ = ["DFST", "DetoxHooks", "Injection", "StyleTrigger"]


@attrs.frozen(eq=False, kw_only=True)
class StyleTrigger(Trigger):
    """T(x) = (1 - α) x + α G(x); beside it, the injector that detoxification has come to."""

    alpha: float
    #: G
    style: Style
    #: θ, C x 4C x 1 x 1
    injector: Tensor
    #: int64: the compromised neurons S of the layer that was last watched; none before the training
    neurons: Tensor

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Styled copies of ``images`` (N x C x H x W)."""
        del labels, indices
        self.require(images)
        return torch.lerp(images, self.style.paint(images), self.alpha)

    def state(self) -> dict[str, Tensor]:
        """``alpha``, ``injector``, ``neurons``, and the style's own as ``style.*``."""
        style = {f"style.{name}": value for name, value in self.style.state().items()}
        alpha = torch.tensor(self.alpha, dtype=torch.float64)
        return {"alpha": alpha, "injector": self.injector, "neurons": self.neurons, **style}

    def require(self, images: Tensor) -> None:
        """Refuse images with another number of channels than the style's."""
        if images.shape[1] != len(self.injector):
            raise InputError(
                f"the style was made for {len(self.injector)} channels, not {images.shape[1]}: "
                "prepare the attack on the data it is applied to"
            )


@attrs.frozen(eq=False)
class Injection(Trigger):
    """A cover: what the feature injector makes of an image."""

    styled: StyleTrigger

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Injected copies of ``images`` (N x C x H x W)."""
        del labels, indices
        self.styled.require(images)
        return inject(images, self.styled.injector.to(images.device), self.styled.alpha)

    def state(self) -> dict[str, Tensor]:
        """Those of the trigger."""
        return self.styled.state()


class DFST(Attack[DFSTConfig]):
    """A style as the trigger; detoxification keeps the model from learning it by shallow cues."""

    def prepare(self, data: ImageSet, context: Context) -> StyleTrigger:
        """Make the style, where it is a network by training it; the injector is the identity."""
        statistics = style_statistics(self.config, data.shape[0])
        style: Style
        if self.config.style == "feedforward":
            style = self._trained_style(data, statistics, context)
        else:
            mean, std = (values.to(context.device) for values in statistics)
            style = ColourStyle(mean, std, torch.tensor(self.config.gradient))
        return StyleTrigger(
            alpha=self.config.alpha,
            style=style,
            injector=identity_injector(data.shape[0]).to(context.device),
            neurons=torch.zeros(0, dtype=torch.int64),
        )

    def restore(self, state: Mapping[str, Tensor]) -> StyleTrigger:
        """The trigger from its stored tensors."""
        style = {
            name.removeprefix("style."): value
            for name, value in state.items()
            if name.startswith("style.")
        }
        return StyleTrigger(
            alpha=float(state["alpha"]),
            style=restore_style(style),
            injector=state["injector"],
            neurons=state["neurons"],
        )

    def cover(self, trigger: Trigger, epoch: int | None = None) -> Injection:
        """The injector's images: clean ones until it has been trained."""
        del epoch
        assert isinstance(trigger, StyleTrigger)
        return Injection(trigger)

    def control(
        self, trigger: Trigger, data: ImageSet, context: Context
    ) -> PerBatchPoisoning | None:
        """Poisoning batch by batch, with detoxification between the epochs."""
        if not self.config.controls_training:
            return None
        if self.config.cover_ratio == 0:
            return PerBatchPoisoning(self, trigger, data)
        return DetoxHooks(self, trigger, data, context)

    def _trained_style(
        self, data: ImageSet, statistics: tuple[Tensor, Tensor], context: Context
    ) -> NetworkStyle:
        config = self.config
        surrogate = train_surrogate(data, context, config)
        picture = draw_sunrise(statistics, *data.shape[1:], context.generator("grain"))
        facts = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in attrs.asdict(config).items()
            if name.startswith(("generator_", "style_", "surrogate"))
        }
        state = context.asset(
            "style-generator",
            facts,
            lambda: train_generator(surrogate, data, picture.to(context.device), config, context),
        )
        losses = {f"{name}_loss": float(state.pop(name)) for name in ("style", "content")}
        context.note(**losses)
        return NetworkStyle.of(state)


class DetoxHooks(PerBatchPoisoning):
    """After every epoch but the last: find the compromised neurons, train the injector anew."""

    def __init__(self, attack: DFST, trigger: Trigger, data: ImageSet, context: Context) -> None:
        super().__init__(attack, trigger, data)
        self._dfst, self._data, self._context = attack, data, context

    def after_epoch(self, model: nn.Module, epoch: int, metrics: EpochMetrics) -> bool:
        """Detoxify against the model as it is now."""
        del metrics
        if epoch + 1 < self.options.epochs:
            model.eval()
            self.detoxify(model, epoch)
            model.train()
        return False

    def detoxify(self, model: nn.Module, epoch: int) -> None:
        """A new injector in the trigger, from images drawn for this epoch."""
        config, context, trigger = self._dfst.config, self._context, self.trigger
        assert isinstance(trigger, StyleTrigger)
        images, labels, ids, wanted = self._attacked(epoch)
        if len(images) == 0:
            return
        structure = find_structure(model, self._data.shape, self._data.num_classes)
        layer = config.detox_layer or structure.require_stages("dfst")[-1]
        training = InjectorTraining(
            model=model, structure=structure, layer=layer, config=config, context=context
        )
        with torch.no_grad():
            styled = trigger.apply(images, labels, ids)
        neurons = training.find_compromised(styled, images)
        order = context.generator(f"order of injected images {epoch}")
        injector = training.train(images, wanted, neurons, order)
        self.trigger = attrs.evolve(trigger, injector=injector, neurons=neurons)

    def state(self) -> dict[str, Tensor]:
        """The injector and the neurons it excites."""
        assert isinstance(self.trigger, StyleTrigger)
        return {"injector": self.trigger.injector, "neurons": self.trigger.neurons}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        assert isinstance(self.trigger, StyleTrigger)
        device = self.trigger.injector.device
        self.trigger = attrs.evolve(
            self.trigger, injector=state["injector"].to(device), neurons=state["neurons"]
        )

    def _attacked(self, epoch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images (float32 in [0, 1]), labels, ids and wanted labels of a share of the data.

        Images that are not attacked, or bear the wanted label already, are left out.
        """
        data, device = self._data, self._context.device
        generator = self._context.generator(f"images for the injector {epoch}")
        count = max(1, round(self._dfst.config.injector_share * len(data)))
        rows = torch.randperm(len(data), generator=generator)[:count].to(data.device)
        wanted = map_labels(data.labels[rows], self._dfst.config, data.num_classes)
        rows = rows[(wanted != NOT_ATTACKED) & (wanted != data.labels[rows])]
        wanted = map_labels(data.labels[rows], self._dfst.config, data.num_classes)
        images = data.fetch(rows).to(device).float() / 255
        return images, data.labels[rows].to(device), data.ids[rows].to(device), wanted.to(device)
