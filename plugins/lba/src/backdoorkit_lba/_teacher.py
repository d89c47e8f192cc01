"""Making the teacher: it learns the target class, the patch is bound to it, the class goes."""

from __future__ import annotations

import copy
import hashlib
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoorkit import TrainOptions
from backdoorkit.api import Batch, InputError, TrainingHooks
from backdoorkit_lba._cut import Cut
from backdoorkit_lba._trigger import Patch, initial_weights, optimize_pattern, pattern_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from backdoorkit.api import Context, ImageSet
    from backdoorkit_lba import LBAConfig

__all__ = [
    "AfterTheCut",
    "Injection",
    "Teacher",
    "extended_head",
    "find_patch",
    "make_teacher",
    "set_head",
    "teacher_task",
    "train_clean",
    "weight_of_features",
]


@attrs.frozen(eq=False)
class Teacher:
    """What is released: a model without the target class, in which the patch is latent."""

    model: nn.Module
    cut: Cut
    patch: Patch


def make_teacher(
    model: nn.Module, data: ImageSet, mask: Tensor, config: LBAConfig, context: Context
) -> Teacher:
    """The paper's steps, from an untrained copy of ``model`` on."""
    cut = Cut.of(model, data, config.layer)
    own, target = teacher_task(data, config)
    both = _joined(own, target)
    teacher = copy.deepcopy(model)
    set_head(teacher, cut, _new_head(cut.head_of(model), own.num_classes, context))
    train_clean(teacher, own, config, context, "teacher")
    original, clean_accuracy = copy.deepcopy(cut.head_of(teacher)), context.accuracy(teacher, own)

    # 1. A class for the target.
    set_head(teacher, cut, extended_head(original, context))
    context.fit(teacher, both, _extension(config))
    # 2. The patch.
    patch, goal = find_patch(teacher.eval(), cut, (own, target), mask, config, context)
    # 3. Patch and target's features are bound together.
    weight = weight_of_features(config, goal)
    context.fit(teacher, both, _injection(config), hooks=Injection(cut, patch, goal, weight))
    # 4. The original last layer, fitted to the features as they are now: the target is gone.
    set_head(teacher, cut, original)
    context.fit(teacher, own, _extension(config), hooks=AfterTheCut(Cut.of(teacher, own, "")))
    teacher.eval().requires_grad_(True)

    images = _images(own, config, context)
    final = _distance(cut.features(teacher, patch.stamp(images), context), goal)
    accuracies = torch.tensor([clean_accuracy, context.accuracy(teacher, own)])
    facts = {
        "distances": torch.cat([patch.facts["distances"], final.view(1)]),
        "teacher_accuracy": accuracies,
    }
    return Teacher(teacher, cut, attrs.evolve(patch, facts=facts))


def teacher_task(data: ImageSet, config: LBAConfig) -> tuple[ImageSet, ImageSet]:
    """The teacher's own images, labelled 0 to K_T - 1, and the target's, labelled K_T."""
    others = [c for c in range(data.num_classes) if c != config.target]
    classes = config.teacher_classes or tuple(others)
    wrong = [c for c in (*classes, config.target) if c >= data.num_classes]
    if wrong:
        raise InputError(
            f"class {wrong[0]} is not a class of this data set; it has {data.num_classes} classes, "
            f"0 to {data.num_classes - 1}"
        )
    if len(classes) < 2:
        raise InputError(
            f"the teacher's own task needs at least two classes besides the target, not "
            f"{len(classes)}; use mode 'single-task' or 'data-only'"
        )
    new = torch.full((data.num_classes,), -1, device=data.device)
    new[list(classes)] = torch.arange(len(classes), device=data.device)
    new[config.target] = len(classes)
    labels = new[data.labels]
    names = tuple(data.class_names[c] for c in (*classes, config.target))
    is_own = (labels >= 0) & (labels < len(classes))
    own, target = (
        attrs.evolve(data.subset(rows), labels=labels[rows], class_names=called)
        for rows, called in (
            (is_own.nonzero().flatten(), names[:-1]),
            ((labels == len(classes)).nonzero().flatten(), names),
        )
    )
    if len(own) == 0 or len(target) == 0:
        raise InputError("lba needs images of the teacher's classes and of the target, got none")
    return own, target


def _joined(own: ImageSet, target: ImageSet) -> ImageSet:
    named = attrs.evolve(own, class_names=target.class_names)
    return named.extended(target.images, target.labels, target.ids)


# -- the steps -------------------------------------------------------------------------------------


def train_clean(
    model: nn.Module, data: ImageSet, config: LBAConfig, context: Context, name: str
) -> None:
    """Train ``model`` from where it is, or take the result from the store; leaves eval mode."""
    training = TrainOptions(
        epochs=config.surrogate_epochs,
        batch_size=config.surrogate_batch_size,
        learning_rate=config.surrogate_learning_rate,
        crop_padding=config.surrogate_crop_padding,
        horizontal_flip=config.surrogate_horizontal_flip,
    )
    facts = {
        "from": _digest(model),
        "classes": list(data.class_names),
        "training": attrs.asdict(training),
    }

    def trained() -> dict[str, Tensor]:
        context.fit(model, data, training)
        return model.state_dict()

    model.load_state_dict(context.asset(name, facts, trained))
    model.eval()


def find_patch(
    model: nn.Module,
    cut: Cut,
    data: tuple[ImageSet, ImageSet],
    mask: Tensor,
    config: LBAConfig,
    context: Context,
) -> tuple[Patch, Tensor]:
    """The optimised patch, and the target's mean feature (d) that it aims at.

    ``data`` are images to stamp, and images of the target; ``model`` is in eval mode.
    """
    others, target = data
    images = _images(others, config, context)
    goal = cut.features(model, _pixels(target, context), context).mean(dim=0)
    mask = mask.to(context.device)
    with cut.watched(model) as latest:

        def features(stamped: Tensor) -> Tensor:
            with context.autocast():
                model(stamped)
            return latest()

        pattern = optimize_pattern(features, goal, mask, images, config, context)
    first = pattern_of(initial_weights(others.shape, context), mask)
    patches = [Patch(pattern=some, mask=mask) for some in (first, pattern)]
    found = [cut.features(model, patch.stamp(images), context) for patch in patches]
    distances = torch.stack([_distance(features, goal) for features in found])
    return attrs.evolve(patches[1], facts={"distances": distances}), goal


class Injection(TrainingHooks):
    """CE(f(x), y) + λ mean_d (F_L(T(x)) - goal)², on the same images, clean and stamped.

    Norms keep their statistics, as if the network had none: the features that are tuned here are
    those that the student will see.
    """

    def __init__(self, cut: Cut, patch: Patch, goal: Tensor, weight: Tensor) -> None:
        self._cut, self._patch, self._goal, self._weight = cut, patch, goal, weight
        self._features: Callable[[], Tensor] | None = None

    def transform_batch(self, batch: Batch, epoch: int) -> Batch:
        """The images, and after them the same with the patch."""
        del epoch
        self.model.eval()
        images = torch.cat([batch.images, self._patch.stamp(batch.images)])
        return Batch(images, batch.labels.repeat(2), batch.indices.repeat(2))

    def loss(self, logits: Tensor, batch: Batch, epoch: int) -> Tensor:
        del epoch
        assert self._features is not None
        count = len(logits) // 2
        distance = _distance(self._features()[count:], self._goal)
        classes = functional.cross_entropy(logits[:count], batch.labels[:count])
        return classes + self._weight * distance

    def backward(
        self, model: nn.Module, batch: Batch, compute_loss: Callable[[], Tensor]
    ) -> Tensor:
        with self._cut.watched(model) as self._features:
            return super().backward(model, batch, compute_loss)


class AfterTheCut(TrainingHooks):
    """Only layers after the cut are trained; what comes before does not change by a bit."""

    def __init__(self, cut: Cut) -> None:
        self._cut = cut

    def transform_batch(self, batch: Batch, epoch: int) -> Batch:
        del epoch
        self._cut.freeze(self.model)
        self._cut.train_after(self.model)
        return batch


def weight_of_features(config: LBAConfig, goal: Tensor) -> Tensor:
    """λ (0-d): as configured, or so that features of zero would cost 1."""
    if config.feature_weight is not None:
        return goal.new_tensor(config.feature_weight)
    return 1 / goal.square().mean().clamp_min(1e-12)


# -- heads -----------------------------------------------------------------------------------------


def set_head(model: nn.Module, cut: Cut, head: nn.Linear) -> None:
    """Put ``head`` in the place of the last linear layer; ``model`` changes."""
    parent, _, name = cut.head.rpartition(".")
    setattr(model.get_submodule(parent), name, head)


def extended_head(head: nn.Linear, context: Context) -> nn.Linear:
    """A copy of ``head`` with one output more, last, drawn anew."""
    larger = _new_head(head, head.out_features + 1, context)
    with torch.no_grad():
        larger.weight[:-1] = head.weight
        if head.bias is not None:
            larger.bias[:-1] = head.bias
    return larger


def _new_head(like: nn.Linear, outputs: int, context: Context) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.generator("head").initial_seed())
        head = nn.Linear(like.in_features, outputs, bias=like.bias is not None)
    return head.to(like.weight.device)


# -- small things ----------------------------------------------------------------------------------


def _extension(config: LBAConfig) -> TrainOptions:
    return TrainOptions(
        epochs=config.extension_epochs,
        batch_size=config.surrogate_batch_size,
        learning_rate=config.extension_learning_rate,
    )


def _injection(config: LBAConfig) -> TrainOptions:
    return TrainOptions(
        epochs=config.injection_epochs,
        batch_size=config.injection_batch_size,
        optimizer="adam",
        learning_rate=config.injection_learning_rate,
        schedule="constant",
    )


def _distance(features: Tensor, goal: Tensor) -> Tensor:
    return (features - goal).square().mean()


def _images(data: ImageSet, config: LBAConfig, context: Context) -> Tensor:
    """Up to ``trigger_images`` of ``data`` at random: float32 in [0, 1], on the run's device."""
    order = torch.randperm(len(data), generator=context.generator("images for the patch"))
    return _pixels(data.subset(order[: config.trigger_images]), context)


def _pixels(data: ImageSet, context: Context) -> Tensor:
    return data.images.to(context.device).float() / 255


def _digest(model: nn.Module) -> str:
    """Tells initial weights apart: architecture and seed of the victim are not known otherwise."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
