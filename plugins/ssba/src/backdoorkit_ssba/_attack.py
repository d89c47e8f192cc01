"""The sample-specific attack (Li et al., ICCV 2021, arXiv:2012.03816)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import attrs
import torch

from backdoorkit.api import Attack, InputError, Trigger
from backdoorkit_ssba import SSBAConfig
from backdoorkit_ssba._networks import Encoder
from backdoorkit_ssba._training import Reached, encode, measure, split, train

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from backdoorkit.api import Context, ImageSet

__all__ = ["SSBA", "EncoderTrigger"]

_PREFIX: Final = "encoder."
#: the options that decide about the encoder; the others only judge it
_TRAINING_OPTIONS: Final = (
    *("bits", "head", "width", "steps", "batch_size", "learning_rate"),
    *("image_weight", "wait", "ramp"),
)
_REACHED: Final = tuple(field.name for field in attrs.fields(Reached))


@attrs.frozen(eq=False)
class EncoderTrigger(Trigger):
    """T(x) = clip(E(b*, x)): one secret b*, and a pattern that follows from the image.

    ``secret`` is float32, L, of zeros and ones.
    """

    encoder: Encoder
    secret: Tensor

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Triggered copies of ``images`` (N x C x H x W, of every size)."""
        del labels, indices
        if images.shape[1] != self.encoder.channels:
            raise InputError(
                f"the encoder was trained on images of {self.encoder.channels} channels, not "
                f"{images.shape[1]}: prepare the attack on the data it is applied to"
            )
        encoder = self.encoder.to(images.device)
        return encode(encoder, images, self.secret.to(images.device))

    def state(self) -> dict[str, Tensor]:
        """``secret``, ``direct`` (the head) and the encoder's weights."""
        weights = {f"{_PREFIX}{name}": value for name, value in self.encoder.state_dict().items()}
        return {
            "secret": self.secret,
            "direct": torch.tensor(self.encoder.head == "direct"),
            **weights,
        }


class SSBA(Attack[SSBAConfig]):
    """An encoder that hides a message in images is the trigger; the message is always the same.

    Encoder and decoder are trained on the attacker's images first. The victim sees neither.
    """

    def prepare(self, data: ImageSet, context: Context) -> EncoderTrigger:
        """Train the encoder, or take it from the store, and see whether it is good enough."""
        config = self.config
        decided_by = {name: getattr(config, name) for name in _TRAINING_OPTIONS}
        made = context.asset("encoder", decided_by, lambda: self._made(data, context))
        reached = Reached(**{name: made.pop(name).item() for name in _REACHED})
        context.note(**attrs.asdict(reached))
        self._judge(reached)
        return self.restore(made)

    def restore(self, state: Mapping[str, Tensor]) -> EncoderTrigger:
        """The trigger from its stored tensors; the weights' shapes say what the encoder is."""
        weights = {
            name.removeprefix(_PREFIX): value
            for name, value in state.items()
            if name.startswith(_PREFIX)
        }
        channels, width = weights["out.weight"].shape[:2]
        head: Literal["residual", "direct"] = "direct" if state["direct"] else "residual"
        with torch.device("meta"):  # weights that are replaced need not be drawn
            encoder = Encoder(channels, len(state["secret"]), width, head)
        encoder.load_state_dict(weights, assign=True)
        return EncoderTrigger(encoder.eval().requires_grad_(False), state["secret"])

    def _made(self, data: ImageSet, context: Context) -> dict[str, Tensor]:
        """The trigger's state, and beside it what was reached, each a tensor of one number."""
        drawn = torch.randint(0, 2, (self.config.bits,), generator=context.generator("secret"))
        secret = drawn.float().to(context.device)
        to_train, held_out = split(data, context.generator("held-out images"))
        encoder, decoder = train(to_train, self.config, context)
        reached = measure(encoder, decoder, held_out, secret)
        numbers = {
            name: torch.tensor(value, dtype=torch.float64)
            for name, value in attrs.asdict(reached).items()
        }
        return {**EncoderTrigger(encoder, secret).state(), **numbers}

    def _judge(self, reached: Reached) -> None:
        """Refuse an encoder that hides nothing, spoils images, or changes all alike."""
        config = self.config
        asked = (
            ("bits read correctly", reached.bit_accuracy, config.min_bit_accuracy, 1),
            ("PSNR in dB", reached.psnr, config.min_psnr, 1),
            ("cosine between patterns", reached.residual_cosine, config.max_cosine, -1),
        )
        missed = [
            f"{what} {value:.3g}, not at {'least' if sign > 0 else 'most'} {bound:g}"
            for what, value, bound, sign in asked
            if not sign * value >= sign * bound
        ]
        if missed:
            raise InputError(
                f"the encoder does not reach what is asked of it after {config.steps} steps: "
                f"{'; '.join(missed)}. Train it longer (steps), take another number of bits, or "
                "ask for less"
            )
