"""The input-aware dynamic attack (Nguyen and Tran, arXiv:2010.08138)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import torch

from backdoorkit.api import Attack, Trigger, require_image_shape, uniform_by_sample
from backdoorkit_inputaware import InputAwareConfig
from backdoorkit_inputaware._joint import JointTraining
from backdoorkit_inputaware._masks import train_masks
from backdoorkit_inputaware._networks import ImageNetwork, blended, new_network, sharpened

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from backdoorkit.api import Context, ImageSet

__all__ = ["CrossTrigger", "InputAware", "InputAwareTrigger"]


@attrs.frozen(eq=False, kw_only=True)
class InputAwareTrigger(Trigger):
    """T(x) = x + (g(x) - x) h(M(x)): pattern and place are made from the image itself."""

    #: g, to C channels; frozen, in eval mode, so that no image looks at those beside it
    patterns: ImageNetwork
    #: M, to one channel; likewise
    masks: ImageNetwork
    #: uint8, D x C x H x W, and int64, D: images whose triggers crosses bear, and their ids
    donors: Tensor
    donor_ids: Tensor
    #: of the draw of donors
    key: int

    @torch.no_grad()
    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Triggered copies of ``images`` (N x C x H x W)."""
        del labels, indices
        return self.transferred(images, images)

    def transferred(self, images: Tensor, sources: Tensor) -> Tensor:
        """``images`` with the triggers that were made for ``sources`` (both N x C x H x W)."""
        require_image_shape(images, self.donors.shape[1:], "the generators' input")
        patterns, masks = self.patterns.to(images.device), self.masks.to(images.device)
        return blended(images, patterns(sources), sharpened(masks(sources)))

    def state(self) -> dict[str, Tensor]:
        """``patterns.*``, ``masks.*``, ``donors``, ``donor_ids`` and ``key``."""
        networks = {"patterns": self.patterns, "masks": self.masks}
        return {
            **{
                f"{name}.{key}": value
                for name, network in networks.items()
                for key, value in network.state_dict().items()
            },
            "donors": self.donors,
            "donor_ids": self.donor_ids,
            "key": torch.tensor(self.key),
        }


@attrs.frozen(eq=False)
class CrossTrigger(Trigger):
    """A cover, B(x, x') = x + (g(x') - x) h(M(x')): the trigger that was made for another image.

    Which donor x' is follows from the sample's id and ``stream``; it is never the sample itself.
    """

    trigger: InputAwareTrigger
    stream: int = 0

    @torch.no_grad()
    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Crossed copies of ``images`` (N x C x H x W)."""
        del labels
        donors, ids = self.trigger.donors, indices.to(self.trigger.donor_ids.device)
        drawn = uniform_by_sample(ids, (), self.trigger.key, self.stream)
        rows = (drawn * len(donors)).long()
        is_itself = self.trigger.donor_ids[rows] == ids
        rows = torch.where(is_itself, rows + 1, rows) % len(donors)
        return self.trigger.transferred(images, donors[rows].to(images.device).float() / 255)

    def state(self) -> dict[str, Tensor]:
        """Those of the trigger, and ``stream``."""
        return {**self.trigger.state(), "stream": torch.tensor(self.stream)}


class InputAware(Attack[InputAwareConfig]):
    """Two generators make a trigger from each image; crosses keep it from working on others.

    The mask generator comes first and stays as it is. The pattern generator is trained together
    with the victim, batch by batch (:class:`JointTraining`).
    """

    def prepare(self, data: ImageSet, context: Context) -> InputAwareTrigger:
        """Train the mask generator; the pattern generator is untrained."""
        config = self.config
        patterns = new_network(
            data.shape,
            data.shape[0],
            config.width,
            config.depth,
            context.generator("pattern generator"),
        )
        masks = context.asset(
            "mask-generator", _mask_facts(config), lambda: train_masks(data, config, context)
        )
        context.note(mask_density=float(masks.pop("density")))
        order = torch.randperm(len(data), generator=context.generator("donors"))
        donors = order[: config.donors].to(data.device)
        key = torch.randint(2**31, (), generator=context.generator("donor of a cross"))
        return InputAwareTrigger(
            patterns=patterns.to(context.device).eval().requires_grad_(False),
            masks=ImageNetwork.of(masks),
            donors=data.fetch(donors).to(context.device),
            donor_ids=data.ids[donors].to(context.device),
            key=int(key),
        )

    def restore(self, state: Mapping[str, Tensor]) -> InputAwareTrigger:
        """The trigger from its stored tensors."""
        patterns, masks = (
            ImageNetwork.of(
                {
                    name.removeprefix(prefix): value
                    for name, value in state.items()
                    if name.startswith(prefix)
                }
            )
            for prefix in ("patterns.", "masks.")
        )
        return InputAwareTrigger(
            patterns=patterns,
            masks=masks,
            donors=state["donors"],
            donor_ids=state["donor_ids"],
            key=int(state["key"]),
        )

    def cover(self, trigger: Trigger, epoch: int | None = None) -> CrossTrigger:
        """Crosses with the donors; the training makes its own, with images of the same batch."""
        assert isinstance(trigger, InputAwareTrigger)
        return CrossTrigger(trigger, 0 if epoch is None else epoch + 1)

    def control(self, trigger: Trigger, data: ImageSet, context: Context) -> JointTraining:
        """Hooks that train the pattern generator with the victim."""
        del context
        assert isinstance(trigger, InputAwareTrigger)
        return JointTraining(self, trigger, data)


def _mask_facts(config: InputAwareConfig) -> dict[str, Any]:
    """Every option that the mask generator depends on."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in attrs.asdict(config).items()
        if name.startswith("mask_") or name in ("width", "depth")
    }
