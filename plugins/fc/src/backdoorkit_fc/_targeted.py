"""Feature collision with chosen test images (Shafahi et al., "Poison Frogs", NeurIPS 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch

from backdoorkit.api import NOT_ATTACKED, InputError
from backdoorkit_fc import FCConfig
from backdoorkit_fc._poisons import Collision, CollisionTrigger, Pairs

if TYPE_CHECKING:
    from torch import Tensor

    from backdoorkit.api import Context, ImageSet, Trigger
    from backdoorkit_fc._transfer import Extractor

__all__ = ["FeatureCollision", "nearest_bases"]


class FeatureCollision(Collision[FCConfig]):
    """A few correctly labelled poisons make a chosen test image be taken for their class.

    There is no trigger: test images are not altered, and only the chosen ones are attacked.
    """

    def prepare(self, data: ImageSet, context: Context) -> CollisionTrigger:
        """Choose the attacked images among the test images."""
        config, test = self.config, context.test_data
        candidates = self.attacked_classes(test.labels).nonzero().flatten()
        if len(candidates) < config.targets:
            raise InputError(
                f"expected at least {config.targets} test images of the source class to attack, "
                f"got {len(candidates)}; set fewer targets"
            )
        order = torch.randperm(len(candidates), generator=context.generator("attacked images"))
        chosen = candidates[order[: config.targets].to(candidates.device)]
        return attrs.evolve(
            CollisionTrigger.plain(data, context.device),
            ids=test.ids[chosen].to(context.device),
            images=test.fetch(chosen).to(context.device),
        )

    def wanted_labels(
        self, trigger: Trigger, labels: Tensor, ids: Tensor, num_classes: int
    ) -> Tensor:
        """The target class for the chosen test images; no others are attacked."""
        del num_classes
        assert isinstance(trigger, CollisionTrigger)
        attacked = torch.isin(ids, trigger.ids.to(ids.device))
        return torch.full_like(labels, self.config.target).where(attacked, NOT_ATTACKED)

    def pairs(
        self,
        extract: Extractor,
        data: ImageSet,
        chosen: Tensor,
        trigger: CollisionTrigger,
        context: Context,
    ) -> Pairs:
        """The poisons are shared out among the attacked images, one by one."""
        images = trigger.images.to(context.device).float() / 255
        owner = torch.arange(len(chosen)) % len(images)
        if self.config.bases == "nearest":
            members = (data.labels == self.config.target).nonzero().flatten()
            features = extract.all_of(data.subset(members), context)
            with torch.no_grad():
                goals = extract(images).float().cpu()
            chosen = members[nearest_bases(torch.cdist(goals, features), owner).to(members.device)]
        return Pairs(chosen, images[owner.to(images.device)])

    def starts(self, bases: Tensor, goals: Tensor) -> Tensor:
        """Bases with a watermark of what they are to collide with: γ z + (1 - γ) b."""
        return torch.lerp(bases, goals, self.config.watermark)


def nearest_bases(distances: Tensor, owner: Tensor) -> Tensor:
    """int64, n: a base for each poison, all different.

    ``distances`` (k x N) are those of the bases to each attacked image, ``owner`` (int64, n) is the
    attacked image of each poison. Of the attacked images, the first chooses first.
    """
    distances, chosen = distances.clone(), torch.empty_like(owner)
    for target in range(len(distances)):
        mine = owner == target
        nearest = distances[target].argsort(stable=True)[: int(mine.sum())]
        chosen[mine] = nearest
        distances[:, nearest] = torch.inf
    return chosen
