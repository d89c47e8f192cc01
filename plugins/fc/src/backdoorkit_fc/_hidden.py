"""Hidden-trigger attack: collision with patched images (after Saha et al., AAAI 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch

from backdoorkit.api import NOT_ATTACKED, InputError
from backdoorkit_fc import HiddenTriggerConfig
from backdoorkit_fc._poisons import Collision, CollisionTrigger, Pairs

if TYPE_CHECKING:
    from torch import Tensor

    from backdoorkit.api import Context, ImageSet, Trigger
    from backdoorkit_fc._transfer import Extractor

__all__ = ["HiddenTrigger"]


class HiddenTrigger(Collision[HiddenTriggerConfig]):
    """Poisons look like their class and have the features of patched images of other classes.

    Each poison collides with one patched training image, drawn once.
    """

    def prepare(self, data: ImageSet, context: Context) -> CollisionTrigger:
        """The patch, on a canvas of the images' shape."""
        channels, height, width = data.shape
        size = self.config.size or max(1, round(30 * height / 224))
        top, left = (side - self.config.offset - size for side in (height, width))
        if min(top, left) < 0:
            raise InputError(
                f"the patch has {size} pixels a side and sits {self.config.offset} from the edges, "
                f"but the images are {height} by {width}: set a smaller size or offset"
            )
        trigger = CollisionTrigger.plain(data, torch.device("cpu"))
        rows, columns = slice(top, top + size), slice(left, left + size)
        colours = torch.full((channels, size, size), 255)
        if self.config.patch == "noise":
            generator = context.generator("patch")
            colours = torch.randint(0, 256, (channels, size, size), generator=generator)
        trigger.pattern[0, :, rows, columns] = colours.float() / 255
        trigger.mask[..., rows, columns] = True
        moved = {name: value.to(context.device) for name, value in trigger.state().items()}
        return attrs.evolve(trigger, **moved)

    def wanted_labels(
        self, trigger: Trigger, labels: Tensor, ids: Tensor, num_classes: int
    ) -> Tensor:
        """The target class; where there is a source class, for its images alone."""
        wanted = super().wanted_labels(trigger, labels, ids, num_classes)
        if self.config.source_class is None:
            return wanted
        return wanted.where(self.attacked_classes(labels), NOT_ATTACKED)

    def pairs(
        self,
        extract: Extractor,
        data: ImageSet,
        chosen: Tensor,
        trigger: CollisionTrigger,
        context: Context,
    ) -> Pairs:
        """Every poison gets a patched image of another class; while there are enough, its own."""
        del extract
        others = self.attacked_classes(data.labels).nonzero().flatten()
        if len(others) == 0:
            raise InputError(
                "hidden-trigger collides with patched training images of the source class, and "
                "there are none; set another source_class"
            )
        order = torch.randperm(len(others), generator=context.generator("patched images"))
        drawn = others[order[torch.arange(len(chosen)) % len(others)].to(others.device)]
        images = data.fetch(drawn).to(context.device).float() / 255
        return Pairs(chosen, trigger.apply(images, data.labels[drawn], data.ids[drawn]))

    def starts(self, bases: Tensor, goals: Tensor) -> Tensor:
        """The bases themselves: a bound would clip a watermark away."""
        del goals
        return bases
