"""An attack carried out on the tiny training set, and what its checks have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from torch import Tensor

from backdoorkit.data.poison import SampleKind
from backdoorkit.hooks.info import Need
from backdoorkit.hooks.shared_options import PoisonOptions, RateBasis
from backdoorkit.pipeline.envelope import seeded
from backdoorkit.testing._subject import Subject, require, watched_global_state
from backdoorkit.testing.tiny import IMAGE_SHAPE, NUM_CLASSES, tiny_context, tiny_images

if TYPE_CHECKING:
    from backdoorkit.context import Context
    from backdoorkit.contracts import Attack, Trigger
    from backdoorkit.data.images import ImageSet
    from backdoorkit.data.poison import PoisonedSet

#: The trigger may differ by so much with the size of the batch: a quarter of a grey level.
TOLERANCE: Final = 0.25 / 255
COUNT: Final = 256


@attrs.frozen(eq=False, kw_only=True)
class Planted:
    """An attack carried out on the tiny training set."""

    attack: Attack[Any]
    trigger: Trigger
    poisoned: PoisonedSet
    changed: list[str]


def carried_out(subject: Subject, *, seed: int = 0, key: str = "") -> Planted:
    """The attack carried out, once for each ``key``."""

    def make() -> Planted:
        attack, context = subject.create(), context_for(subject, seed=seed)
        data: ImageSet = tiny_images(COUNT)
        with watched_global_state() as changed, seeded(context):
            trigger = attack.prepare(data, context)
            for name, value in trigger.state().items():
                require(isinstance(value, Tensor), f"state()[{name!r}] is no tensor but {value!r}")
            poisoned = attack.poison(data, trigger, context)
        return Planted(attack=attack, trigger=trigger, poisoned=poisoned, changed=changed)

    if seed or key:
        carried_out(subject)  # where the plain attack fails, the others say nothing new
    return subject.once(key or f"the attack with seed {seed}", make)


def context_for(subject: Subject, *, seed: int = 0, grey: bool = False) -> Context:
    """What the attack declares: test images only if it asks for them."""
    chooses = Need.TEST_DATA in subject.info.needs
    test = held_out_images(grey=grey) if chooses else None
    return tiny_context(subject.name, seed=seed, test_data=test)


def held_out_images(*, grey: bool = False) -> ImageSet:
    """Test images, of which an attack may choose some."""
    return tiny_images(64, seed=4, image_shape=(1 if grey else IMAGE_SHAPE[0], *IMAGE_SHAPE[1:]))


def samples() -> tuple[Tensor, Tensor, Tensor]:
    """Float images, labels and ids, as a trigger gets them."""
    data = tiny_images(30, seed=9)
    return data.images.float() / 255, data.labels, data.ids


def require_close(images: Tensor, expected: Tensor, how: str) -> None:
    difference = float((images - expected).abs().max())
    require(difference <= TOLERANCE, f"{how}, pixels differ by up to {difference:g}")


def require_honest(poisoned: PoisonedSet, options: PoisonOptions) -> None:
    """Fail unless the record tells what was done to the tiny training set."""
    clean = tiny_images(COUNT)
    data, kinds = poisoned.data, poisoned.kinds
    appends = options.rate_basis is RateBasis.APPEND
    require(
        len(data) == len(clean) or (appends and len(data) > len(clean)),
        f"{len(clean)} images became {len(data)}",
    )
    require(torch.equal(data.ids[:COUNT], clean.ids), "ids changed; they belong to the samples")
    # Appended copies have the ids of their originals; here ids are positions.
    true_labels, images = clean.labels[data.ids], clean.images[data.ids]
    require(torch.equal(poisoned.true_labels, true_labels), "true_labels are not the true labels")
    in_range = bool(((data.labels >= 0) & (data.labels < NUM_CLASSES)).all())
    require(in_range, "there are labels of no class")
    require(set(kinds.tolist()) <= {kind.value for kind in SampleKind}, "kinds hold other values")
    kept = kinds == SampleKind.CLEAN
    require(not bool(kept[COUNT:].any()), "clean samples are appended")
    require(torch.equal(data.labels[kept], true_labels[kept]), "labels of clean samples changed")
    require(torch.equal(data.images[kept], images[kept]), "images of clean samples changed")
    covers = kinds == SampleKind.COVER
    require(torch.equal(data.labels[covers], true_labels[covers]), "covers have other labels")


def require_count(poisoned: PoisonedSet, options: PoisonOptions) -> None:
    """Fail unless about as many are poisoned as the options say, from where they say."""
    labels = poisoned.true_labels
    is_target = labels == options.target
    is_source = torch.isin(labels, torch.tensor(options.source_classes, dtype=torch.int64))
    anywhere = torch.ones_like(is_target)
    bases = {
        RateBasis.ALL: (COUNT, anywhere),
        RateBasis.ALL_WITHIN_TARGET: (COUNT, is_target),
        RateBasis.TARGET_CLASS: (int(is_target.sum()), is_target),
        RateBasis.NON_TARGET: (int((~is_target).sum()), ~is_target),
        RateBasis.SOURCE_CLASSES: (int(is_source.sum()), is_source),
        RateBasis.APPEND: (COUNT, anywhere),
    }
    total, eligible = bases[options.rate_basis]
    if options.source_classes:
        eligible = eligible & is_source
    wanted = options.poison_rate * total
    is_poisoned = poisoned.kinds == SampleKind.POISONED
    count = int(is_poisoned.sum())
    require(abs(count - wanted) <= 1, f"{count} samples are poisoned, not about {wanted:g}")
    require(not bool((is_poisoned & ~eligible).any()), "it poisons samples outside its rate basis")
