"""The one evaluation pass: per-sample logits on clean and on triggered test images.

Every metric is computed from what is stored here, so a new metric runs on old results and no
method is evaluated twice.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from torch import Tensor

from backdoorkit._modes import modes_kept
from backdoorkit._precision import autocast
from backdoorkit.data.batches import batches
from backdoorkit.errors import ContractError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    from backdoorkit.data.images import ImageSet

__all__ = ["Evaluation", "PoisonRecord", "Predictions", "accuracy", "evaluate", "predict"]

#: images per batch at 32 x 32; larger images come in smaller batches of as many pixels. On a CPU
#: small batches are twice as fast, because activations then stay in the cache.
_BATCH_SIZE: Final = {"cpu": 128}
_DEFAULT_BATCH_SIZE: Final = 1024


@attrs.frozen(eq=False, kw_only=True)
class Predictions:
    """Logits of one model on one set of images, sample by sample, on the CPU."""

    #: float32, N x K
    logits: Tensor
    #: int64, N: true classes
    labels: Tensor
    #: int64, N: stable ids of the samples, by which evaluations are matched
    ids: Tensor
    #: int64, N: class that the attacker wants, -1 where it does not attack the image; None on
    #: clean images
    targets: Tensor | None = None
    #: int64, N: number of the part of a composed attack that made the image; None otherwise
    parts: Tensor | None = None

    def __attrs_post_init__(self) -> None:
        if self.logits.ndim != 2:
            raise ContractError(f"expected logits N x K, got shape {tuple(self.logits.shape)}")
        for name in ("labels", "ids", "targets", "parts"):
            value = getattr(self, name)
            if value is not None and value.shape != self.logits.shape[:1]:
                raise ContractError(
                    f"expected {name} of shape ({len(self.logits)},), got {tuple(value.shape)}"
                )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def predicted(self) -> Tensor:
        """int64, N: the class with the largest logit, the lowest such class on ties."""
        return self.logits.argmax(dim=1)

    @property
    def correct(self) -> Tensor:
        """bool, N: predicted the true class."""
        return self.predicted == self.labels

    @property
    def eligible(self) -> Tensor:
        """bool, N: counts for attack success by the default rule (true class is not the target)."""
        return self.attacked & (self.labels != self._wanted())

    @property
    def attacked(self) -> Tensor:
        """bool, N: the attacker wants a label of this image; no others count for the attack."""
        return self._wanted() >= 0

    @property
    def hits(self) -> Tensor:
        """bool, N: predicted what the attacker wants."""
        return self.predicted == self._wanted()

    def _wanted(self) -> Tensor:
        if self.targets is None:
            raise ContractError("clean predictions have no attacker's target; use the triggered")
        return self.targets


@attrs.frozen(eq=False, kw_only=True)
class PoisonRecord:
    """What the attacker did to the training set; for metrics alone."""

    #: uint8, N: :class:`backdoorkit.api.SampleKind` of each training sample
    kinds: Tensor
    #: int64, N: labels before poisoning
    true_labels: Tensor | None = None


@attrs.frozen(eq=False, kw_only=True)
class Evaluation:
    """All that a metric may look at."""

    #: number of classes K
    num_classes: int
    #: all test images as they are
    clean: Predictions
    #: all test images with the trigger, also those of the target class: which of them count is
    #: each metric's rule. Of a composed attack, all images once for each of its parts.
    triggered: Predictions | None = None
    #: all test images as covers, where the attack makes covers of its own sort
    covers: Predictions | None = None
    #: names of the parts of a composed attack
    part_names: Sequence[str] = ()
    #: name of the label map, such as ``"all-to-one"``
    label_map: str | None = None
    #: the target class of an all-to-one map
    target: int | None = None
    #: the same model before the defense
    baseline: Evaluation | None = None
    poison: PoisonRecord | None = None
    #: tensors that the defense or detector kept beside its result
    outputs: Mapping[str, Tensor] = attrs.field(factory=dict)
    #: JSON-ready facts of the evaluated step (cost, chosen level...)
    facts: Mapping[str, Any] = attrs.field(factory=dict)

    def to_tensors(self) -> dict[str, Tensor]:
        """The predictions as contiguous tensors by name, for one safetensors file.

        Baseline, poison record and outputs are kept where they were made, not here.
        """
        parts = {"clean": self.clean, "triggered": self.triggered, "covers": self.covers}
        return {
            f"{part}.{name}": value.contiguous()
            for part, predictions in parts.items()
            if predictions is not None
            for name, value in attrs.asdict(predictions, recurse=False).items()
            if value is not None
        }

    def to_facts(self) -> dict[str, Any]:
        """JSON-ready: what :meth:`from_tensors` needs beside the tensors."""
        return {
            "num_classes": self.num_classes,
            "label_map": self.label_map,
            "target": self.target,
            "part_names": list(self.part_names),
            "facts": dict(self.facts),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Evaluation:
        """Undo :meth:`to_tensors` and :meth:`to_facts`; a missing tensor is named."""
        return cls(
            clean=_predictions("clean", tensors),
            triggered=_predictions("triggered", tensors) if "triggered.logits" in tensors else None,
            covers=_predictions("covers", tensors) if "covers.logits" in tensors else None,
            **facts,
        )


def _predictions(part: str, tensors: Mapping[str, Tensor]) -> Predictions:
    missing = [name for name in ("logits", "labels", "ids") if f"{part}.{name}" not in tensors]
    if missing:
        raise InputError(f"stored predictions lack {', '.join(f'{part}.{n}' for n in missing)}")
    return Predictions(
        logits=tensors[f"{part}.logits"],
        labels=tensors[f"{part}.labels"],
        ids=tensors[f"{part}.ids"],
        targets=tensors.get(f"{part}.targets"),
        parts=tensors.get(f"{part}.parts"),
    )


def predict(
    model: nn.Module,
    data: ImageSet,
    *,
    device: torch.device,
    batch_size: int | None = None,
    change: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Logits (float32, N x K, on ``device``) of every image, in order.

    Runs in eval mode and true float32, also where faster arithmetic is the default, so that
    results hardly depend on the hardware or on which images share a batch. ``batch_size`` follows
    the device and the image size unless given. ``change`` is applied to each batch of images
    (float32 in [0, 1], on ``device``) first. Every module's mode is restored.
    """
    model.to(device)
    data = data.to(device)
    size = _batch_size(data.shape, device) if batch_size is None else batch_size
    with modes_kept(model), torch.inference_mode(), _exact_float32(device):
        model.eval()
        logits = []
        for batch in batches(data, size, device=device):
            images = batch.images if change is None else change(batch.images)
            logits.append(model(images.contiguous(memory_format=torch.channels_last)).float())
    if not logits:
        raise InputError("expected at least one image to evaluate, got an empty set")
    return torch.cat(logits)


def accuracy(
    model: nn.Module, data: ImageSet, *, device: torch.device, batch_size: int | None = None
) -> float:
    """Share of ``data`` that ``model`` classifies as labelled, in [0, 1]."""
    logits = predict(model, data, device=device, batch_size=batch_size)
    return float((logits.argmax(dim=1) == data.labels.to(device)).float().mean())


def evaluate(
    model: nn.Module,
    test: ImageSet,
    triggered: ImageSet | None = None,
    *,
    targets: Tensor | None = None,
    parts: Tensor | None = None,
    part_names: tuple[str, ...] = (),
    covers: ImageSet | None = None,
    device: torch.device,
    label_map: str | None = None,
    target: int | None = None,
    facts: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> Evaluation:
    """Predictions on ``test`` and, where there was an attack, on its ``triggered`` images.

    ``triggered`` holds all test images, labelled with their true classes; ``targets`` (int64, N)
    is the class that the attacker wants of each. ``parts`` (int64, N) tells which part of a
    composed attack made an image, ``part_names`` what they are called, and ``covers`` holds images
    that the attacker altered and that keep their label.
    """
    if (triggered is None) != (targets is None):
        raise ContractError("triggered images and their targets go together; give both or neither")
    return Evaluation(
        num_classes=test.num_classes,
        clean=_evaluated(model, test, None, None, device, batch_size),
        triggered=(
            None
            if triggered is None
            else _evaluated(model, triggered, targets, parts, device, batch_size)
        ),
        covers=(
            None if covers is None else _evaluated(model, covers, None, None, device, batch_size)
        ),
        part_names=part_names,
        label_map=label_map,
        target=target,
        facts={} if facts is None else facts,
    )


def _evaluated(
    model: nn.Module,
    data: ImageSet,
    targets: Tensor | None,
    parts: Tensor | None,
    device: torch.device,
    batch_size: int | None,
) -> Predictions:
    logits = predict(model, data, device=device, batch_size=batch_size).cpu()
    if not bool(torch.isfinite(logits).all()):
        raise ContractError(
            "the model gives logits that are not finite; its weights are damaged or it diverged"
        )
    return Predictions(
        logits=logits,
        labels=data.labels.cpu(),
        ids=data.ids.cpu(),
        targets=None if targets is None else targets.cpu(),
        parts=None if parts is None else parts.cpu(),
    )


def _batch_size(shape: tuple[int, int, int], device: torch.device) -> int:
    _, height, width = shape
    size = _BATCH_SIZE.get(device.type, _DEFAULT_BATCH_SIZE)
    return max(1, min(size, size * 32 * 32 // (height * width)))


@contextlib.contextmanager
def _exact_float32(device: torch.device) -> Iterator[None]:
    """Neither autocast nor TF32 (which cuDNN uses for float32 convolutions unless told not to)."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(autocast(device, None))
        if device.type == "cuda":
            cudnn = torch.backends.cudnn
            stack.enter_context(
                cudnn.flags(enabled=cudnn.enabled, deterministic=True, allow_tf32=False)
            )
        yield
