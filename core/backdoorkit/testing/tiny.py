"""A victim small enough to train in a second: synthetic images, two convolutions, a patch.

Everything here is the same on every call: it is what the conformance checks run methods on, and
what a plugin's own tests may use.
"""

from __future__ import annotations

import copy
import functools
from typing import Any, Final

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoorkit.context import Context
from backdoorkit.contracts import Attack, Trigger
from backdoorkit.data.images import ImageSet
from backdoorkit.data.poison import PoisonedSet, apply_trigger, poison_by_options
from backdoorkit.hooks.shared_options import PoisonOptions, TrainOptions
from backdoorkit.models.normalized import NormalizedModel
from backdoorkit.pipeline.envelope import Resources, Truth

__all__ = [
    "IMAGE_SHAPE",
    "NUM_CLASSES",
    "PatchTrigger",
    "TinyNetwork",
    "TinyVictim",
    "copy_state",
    "tiny_context",
    "tiny_images",
    "tiny_lesson",
    "tiny_network",
    "tiny_twin",
    "tiny_victim",
]

#: number of classes K
NUM_CLASSES: Final = 4
#: C, H, W
IMAGE_SHAPE: Final = (3, 16, 16)

_TRAINING: Final = TrainOptions(
    epochs=8, batch_size=32, learning_rate=0.1, schedule="one-cycle", precision="float32"
)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_images(
    count: int, *, seed: int = 0, image_shape: tuple[int, int, int] = IMAGE_SHAPE
) -> ImageSet:
    """``count`` labelled images of four classes; equally many of each, as far as it goes.

    A class is a smooth pattern of its own, of varying strength, under noise.
    """
    channels, height, width = image_shape
    coarse = torch.rand(NUM_CLASSES, channels, 4, 4, generator=_generator(99))
    patterns = functional.interpolate(coarse, size=(height, width), mode="bilinear")
    generator = _generator(seed)
    labels = torch.arange(count) % NUM_CLASSES
    strength = 0.6 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator)
    noise = torch.randn(count, *image_shape, generator=generator)
    images = (strength * patterns[labels] + 0.08 * noise).clamp(0, 1)
    return ImageSet.from_tensors(
        (images * 255).round().to(torch.uint8), labels, num_classes=NUM_CLASSES
    )


class TinyNetwork(nn.Module):
    """Two conv-BN pairs (24 and 32 channels), global average pooling, one linear head."""

    def __init__(self, in_channels: int = IMAGE_SHAPE[0], num_classes: int = NUM_CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 24, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.conv2 = nn.Conv2d(24, 32, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.head = nn.Linear(32, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N x K)."""
        features = functional.relu(self.bn1(self.conv1(images)))
        features = functional.relu(self.bn2(self.conv2(features)))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def tiny_network(seed: int = 0) -> NormalizedModel:
    """An untrained model on the CPU, with its normalisation inside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = TinyNetwork()
    channels = IMAGE_SHAPE[0]
    return NormalizedModel(network, [0.5] * channels, [0.25] * channels)


class PatchTrigger(Trigger):
    """A white square in the lower right corner."""

    def __init__(self, size: int = 4) -> None:
        self.size = size

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Images with the patch, all the same."""
        del labels, indices
        triggered = images.clone()
        triggered[..., -self.size :, -self.size :] = 1
        return triggered

    def state(self) -> dict[str, Tensor]:
        """The patch's side in pixels."""
        return {"size": torch.tensor(self.size)}


def tiny_context(
    method: str,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    image_shape: tuple[int, int, int] = IMAGE_SHAPE,
    num_classes: int = NUM_CLASSES,
    oracle: bool = False,
    test_data: ImageSet | None = None,
) -> Context:
    """What a method is given beside its task, on the tiny victim; oracle success is always 1."""
    return Context(
        method=method,
        seed=seed,
        device=torch.device(device),
        image_shape=image_shape,
        num_classes=num_classes,
        precision="float32",
        oracle=(lambda _: 1.0) if oracle else None,
        test_data=None if test_data is None else lambda: test_data,
    )


@attrs.frozen(eq=False, kw_only=True)
class TinyVictim:
    """A backdoored model and all that belongs to it."""

    #: in eval mode, on the CPU; do not change it in place: it is shared
    model: NormalizedModel
    #: the training set as the victim saw it
    poisoned: PoisonedSet
    #: the defender's clean images, none of which the victim trained on
    reserve: ImageSet
    #: clean test images
    test: ImageSet
    #: the same with the trigger; their labels are the true ones
    triggered: ImageSet
    #: the class the attacker wants
    target: int

    def resources(self, device: torch.device | str = "cpu") -> Resources:
        """Everything a defender could declare a need for."""
        return Resources(
            model=copy.deepcopy(self.model).to(device),
            clean=self.reserve.to(torch.device(device)),
            training_data=lambda: self.poisoned.data.to(torch.device(device)),
            build_model=lambda: tiny_network().to(device),
            num_classes=NUM_CLASSES,
            image_shape=IMAGE_SHAPE,
        )

    def truth(self, device: torch.device | str = "cpu") -> Truth:
        """Everything an analysis could declare a need for, beyond these."""
        device = torch.device(device)
        return Truth(
            plant=self.plant,
            kinds=lambda: self.poisoned.kinds,
            clean_twin=lambda: copy.deepcopy(tiny_twin()).to(device),
            test=lambda: self.test.to(device),
        )

    def plant(self, data: ImageSet) -> ImageSet:
        """The images of other classes than the target with the trigger, labelled as the target."""
        others = data.subset((data.labels != self.target).nonzero().flatten())
        images = apply_trigger(PatchTrigger(), others.images, others.labels, others.ids)
        everywhere = torch.arange(len(others), device=others.device)
        return others.replaced(everywhere, images, torch.full_like(others.labels, self.target))


@functools.cache
def tiny_twin() -> NormalizedModel:
    """The victim's clean twin: the same training without the attack; shared as the victim is."""
    model = tiny_network()
    tiny_context("tiny").fit(model, _clean_images(), _TRAINING)
    return model.eval()


def _clean_images() -> ImageSet:
    return tiny_images(512, seed=1)


@functools.cache
def tiny_victim() -> TinyVictim:
    """The victim, trained on the first call: about a second on one core."""
    options = PoisonOptions(poison_rate=0.1)
    trigger = PatchTrigger()
    poisoned = poison_by_options(_clean_images(), trigger, options, _generator(2))
    model = tiny_network()
    tiny_context("tiny").fit(model, poisoned.data, _TRAINING)
    test = tiny_images(256, seed=4)
    everywhere = torch.arange(len(test))
    images = apply_trigger(trigger, test.images, test.labels, test.ids)
    return TinyVictim(
        model=model.eval(),
        poisoned=poisoned,
        reserve=tiny_images(128, seed=3),
        test=test,
        triggered=test.replaced(everywhere, images, test.labels),
        target=options.target,
    )


def tiny_lesson(attack: Attack[Any], name: str, *, epochs: int) -> tuple[list[float], float]:
    """What a tiny network learns from a set that ``attack``, called ``name``, has poisoned.

    Returns accuracy per class, and attack success on class 0, both in [0, 1].
    """
    context, data, test = tiny_context(name), tiny_images(512), tiny_images(200, seed=9)
    trigger = attack.prepare(data, context)
    victim = tiny_network()
    options = TrainOptions(epochs=epochs, batch_size=32, learning_rate=0.1, precision="float32")
    context.fit(victim, attack.poison(data, trigger, context).data, options)
    stored = apply_trigger(trigger, test.images, test.labels, test.ids)
    triggered = test.replaced(torch.arange(len(test)), stored, test.labels)
    right = context.predict(victim, test).argmax(1) == test.labels
    fooled = context.predict(victim, triggered).argmax(1)[test.labels != 0] == 0
    per_class = [right[test.labels == k].float().mean().item() for k in range(NUM_CLASSES)]
    return per_class, fooled.float().mean().item()


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors as they are now."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
