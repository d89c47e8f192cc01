"""Attacks that do more than plant a patch, for tests of what the pipeline makes of them."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from backdoorkit import MethodInfo, Need, PoisonOptions, Stage, hookimpl, option
from backdoorkit.api import (
    NOT_ATTACKED,
    Attack,
    AttackHooks,
    Context,
    Defense,
    DefenseResult,
    DefenseTask,
    ImageSet,
    Trigger,
)

#: what was made, in order
CALLS: list[str] = []


@attrs.frozen(eq=False)
class Shade(Trigger):
    """The upper left corner in one shade."""

    shade: Tensor
    size: int = 4

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        shaded = images.clone()
        shaded[..., : self.size, : self.size] = self.shade
        return shaded

    def state(self) -> dict[str, Tensor]:
        return {"shade": self.shade}


@attrs.frozen(kw_only=True)
class LearnedOptions(PoisonOptions):
    """It always controls the training."""

    @property
    def controls_training(self) -> bool:
        return True


class Learning(AttackHooks):
    """Brightens the shade by a random step in every epoch."""

    def __init__(self, trigger: Trigger, context: Context) -> None:
        super().__init__(trigger)
        self.generator = context.generator("steps")

    def after_epoch(self, model: Any, epoch: int, metrics: Any) -> bool:
        CALLS.append(f"epoch {epoch}")
        step = torch.rand((), generator=self.generator) / 10
        self.trigger = Shade(self.trigger.shade + step)
        return False

    def state(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state(), **self.trigger.state()}

    def load_state(self, state: Any) -> None:
        self.generator.set_state(state["generator"])
        self.trigger = Shade(state["shade"])


class Learned(Attack[LearnedOptions]):
    def prepare(self, data: ImageSet, context: Context) -> Trigger:
        return Shade(torch.tensor(0.5))

    def restore(self, state: Any) -> Trigger:
        return Shade(state["shade"])

    def control(self, trigger: Trigger, data: ImageSet, context: Context) -> AttackHooks:
        CALLS.append(f"control {len(data)}")
        return Learning(trigger, context)


@attrs.frozen(kw_only=True)
class SearchedOptions(PoisonOptions):
    """Of the shade, and of what has no part in it."""

    shade: float = option(0.5, help="What to search.")


class Searched(Attack[SearchedOptions]):
    def prepare(self, data: ImageSet, context: Context) -> Trigger:
        def search() -> dict[str, Tensor]:
            CALLS.append(f"search {self.config.shade}")
            context.count(100, 10)
            return {"shade": torch.tensor(self.config.shade) + torch.rand(()) / 100}

        return Shade(context.asset("shade", {"shade": self.config.shade}, search)["shade"])

    def restore(self, state: Any) -> Trigger:
        return Shade(state["shade"])


class Chosen(Attack[PoisonOptions]):
    """Attacks the first three test images of class 1, and no others."""

    def prepare(self, data: ImageSet, context: Context) -> Trigger:
        test = context.test_data
        ids = test.ids[(test.labels == 1).nonzero().flatten()[:3]]
        return ChosenTrigger(ids)

    def restore(self, state: Any) -> Trigger:
        return ChosenTrigger(state["ids"])

    def wanted_labels(
        self, trigger: Trigger, labels: Tensor, ids: Tensor, num_classes: int
    ) -> Tensor:
        wanted = torch.full_like(labels, self.config.target)
        return wanted.where(torch.isin(ids, trigger.state()["ids"]), NOT_ATTACKED)


@attrs.frozen(eq=False)
class ChosenTrigger(Trigger):
    """Nothing at all is planted."""

    ids: Tensor

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        return images.clone()

    def state(self) -> dict[str, Tensor]:
        return {"ids": self.ids}


class LooksAtData(Defense[PoisonOptions]):
    """Says what it sees of the training set."""

    def run(self, task: DefenseTask, context: Context) -> DefenseResult:
        images = task.training_data.images
        shaded = (images[..., :4, :4].flatten(1).float().std(1) == 0).sum()
        details = {"images": len(images), "shaded": int(shaded)}
        return DefenseResult(model=task.build_model(), details=details)


def _info(name: str, implementation: str, config: type, *needs: Need) -> MethodInfo:
    return MethodInfo(
        name=name,
        summary="A toy.",
        implementation=f"toy_attacks:{implementation}",
        config=config,
        stage=Stage.TRAINING,
        needs=needs,
    )


@hookimpl
def backdoorkit_attacks() -> list[MethodInfo]:
    return [
        _info("learned", "Learned", LearnedOptions, Need.TRAINING_CONTROL),
        _info("searched", "Searched", SearchedOptions),
        _info("chosen", "Chosen", PoisonOptions, Need.TEST_DATA),
    ]


@hookimpl
def backdoorkit_defenses() -> list[MethodInfo]:
    needs = (Need.TRAINING_DATA, Need.TRAINING_CONTROL)
    return [_info("looks-at-data", "LooksAtData", PoisonOptions, *needs)]
