"""The composite attack (Lin, Xu, Liu, Zhang, CCS 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch

from backdoorkit.api import (
    Attack,
    ImageSet,
    InputError,
    Trigger,
    map_labels,
    poison_by_options,
    uniform_by_sample,
)
from backdoorkit_cba import CBAConfig
from backdoorkit_cba._donors import Donors
from backdoorkit_cba._hooks import MixedTraining
from backdoorkit_cba._mixer import DRAWS, draw_cuts, mix

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from backdoorkit.api import Context, PoisonedSet

__all__ = ["CBA", "CompositeTrigger", "SameClassMix"]


@attrs.frozen(eq=False, kw_only=True)
class CompositeTrigger(Trigger):
    """T(x): part of x beside part of an image of the other class.

    An image of class A meets one of B, and one of B meets one of A. Images of other classes, which
    nobody attacks, meet one of A. Which image, and where both are cut, follows from the sample's
    id.
    """

    #: images to mix with
    donors: Donors
    #: A and B
    classes: tuple[int, int]
    jitter: int
    #: of all draws
    key: int
    #: tells independent draws apart
    stream: int = 0

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Mixes, N x C x H x W."""
        first, second = self.classes
        return self.mixed(images, torch.where(labels == first, second, first), indices)

    def mixed(self, images: Tensor, partners: Tensor, ids: Tensor) -> Tensor:
        """``images`` mixed with images of the classes ``partners`` (int64, N)."""
        drawn = uniform_by_sample(ids.to(images.device), (1 + DRAWS,), self.key, self.stream)
        others = self.donors.fetch(partners, drawn[:, 0], images)
        cuts = draw_cuts(drawn[:, 1:], images.shape[2], images.shape[3], self.jitter)
        return mix(images, others, cuts)

    def state(self) -> dict[str, Tensor]:
        """``images`` and ``labels`` of the donors, ``classes``, ``jitter`` and ``key``."""
        return {
            "images": self.donors.data.images,
            "labels": self.donors.data.labels,
            "classes": torch.tensor(self.classes),
            "num_classes": torch.tensor(self.donors.data.num_classes),
            "jitter": torch.tensor(self.jitter),
            "key": torch.tensor(self.key),
        }


@attrs.frozen(eq=False)
class SameClassMix(Trigger):
    """A cover: an image mixed with another of its own class."""

    trigger: CompositeTrigger

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Mixes, N x C x H x W."""
        return self.trigger.mixed(images, labels, indices)

    def state(self) -> dict[str, Tensor]:
        """Those of the trigger."""
        return self.trigger.state()


@attrs.frozen(eq=False)
class InTraining(Trigger):
    """Another trigger, whose donors are the training images: it is never stored."""

    trigger: Trigger

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """As the other."""
        return self.trigger.apply(images, labels, indices)

    def state(self) -> dict[str, Tensor]:
        """Nothing: a streamed training set would be read as a whole."""
        return {}


class CBA(Attack[CBAConfig]):
    """Mixes of A and B are C; mixes of one class are that class.

    Test images are mixed with test images, which is why the attack is given some; training images
    with training images.
    """

    def prepare(self, data: ImageSet, context: Context) -> CompositeTrigger:
        """Choose the test images to mix test images with."""
        config, test = self.config, context.test_data
        map_labels(data.labels[:0], config.specific, data.num_classes)  # refuses unknown classes
        order = torch.randperm(len(test), generator=context.generator("donors")).to(test.device)
        order = order[test.labels[order].argsort(stable=True)]
        labels = test.labels[order]
        rank = torch.arange(len(order), device=test.device) - torch.searchsorted(labels, labels)
        chosen = test.subset(order[rank < config.donors]).to(context.device)
        for wanted in config.mixed_classes:
            for split, images in (("training", data), ("test", test)):
                if not bool((images.labels == wanted).any()):
                    raise InputError(f"there is no {split} image of class {wanted} to mix with")
        key = torch.randint(2**31, (), generator=context.generator("mixes"))
        trigger = self._trigger(Donors(chosen), int(key), config.jitter)
        draw_cuts(torch.zeros(1, DRAWS), *data.shape[1:], config.jitter)  # refuses small images
        return trigger

    def restore(self, state: Mapping[str, Tensor]) -> CompositeTrigger:
        """The trigger from its stored tensors."""
        count = int(state["num_classes"])
        donors = ImageSet.from_tensors(state["images"], state["labels"], num_classes=count)
        first, second = state["classes"].tolist()
        return CompositeTrigger(
            donors=Donors(donors),
            classes=(first, second),
            jitter=int(state["jitter"]),
            key=int(state["key"]),
        )

    def cover(self, trigger: Trigger, epoch: int | None = None) -> SameClassMix:
        """Mixes of one class."""
        assert isinstance(trigger, CompositeTrigger)
        stream = 1 if epoch is None else epoch + 2
        return SameClassMix(attrs.evolve(trigger, stream=stream))

    def wanted_labels(
        self, trigger: Trigger, labels: Tensor, ids: Tensor, num_classes: int
    ) -> Tensor:
        """C for images of A and B; others are not attacked."""
        del trigger, ids
        return map_labels(labels, self.config.specific, num_classes)

    def poison(self, data: ImageSet, trigger: Trigger, context: Context) -> PoisonedSet:
        """A training set with mixes of both sorts, each of two training images."""
        assert isinstance(trigger, CompositeTrigger)
        mixing = attrs.evolve(trigger, donors=Donors(data))
        return poison_by_options(
            data,
            InTraining(mixing),
            self.config.specific,
            context.generator("poisoned indices"),
            cover=InTraining(self.cover(mixing)),
        )

    def control(self, trigger: Trigger, data: ImageSet, context: Context) -> MixedTraining | None:
        """Hooks that mix the images of every batch and add the contrastive loss."""
        if not self.config.controls_training:
            return None
        assert isinstance(trigger, CompositeTrigger)
        return MixedTraining(self, trigger, data.to(context.device))

    def _trigger(self, donors: Donors, key: int, jitter: int) -> CompositeTrigger:
        first, second = self.config.mixed_classes
        return CompositeTrigger(donors=donors, classes=(first, second), jitter=jitter, key=key)
