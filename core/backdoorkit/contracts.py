"""What a method implements: one small class per kind, with the framework around it.

A method object is made from its configuration alone (``TSBD(config)``) and owns only its
mathematics. The framework owns copying the model, devices, seeds, timing, progress, restoring of
train/eval mode and ``requires_grad``, checking of outputs, and files.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from backdoorkit.context import Context
    from backdoorkit.control import AttackHooks
    from backdoorkit.data.images import ImageSet
    from backdoorkit.data.poison import PoisonedSet
    from backdoorkit.detection import DetectionScores
    from backdoorkit.evaluation import Evaluation
    from backdoorkit.hooks.shared_options import PoisonOptions
    from backdoorkit.models.structure import Structure
    from backdoorkit.tasks import AnalysisTask, DefenseTask, DetectionTask

__all__ = [
    "Analysis",
    "AnalysisResult",
    "Architecture",
    "Attack",
    "Dataset",
    "Defense",
    "DefenseResult",
    "DetectionMetric",
    "DetectionResult",
    "Detector",
    "InputFilter",
    "Method",
    "Metric",
    "MetricValue",
    "Trigger",
]

C = TypeVar("C")
P = TypeVar("P", bound="PoisonOptions")


class Method(abc.ABC, Generic[C]):
    """Base of all methods: holds the configuration."""

    def __init__(self, config: C) -> None:
        self.config = config


class Trigger(abc.ABC):
    """A batched tensor operation that plants the trigger; it knows nothing of labels to give."""

    @abc.abstractmethod
    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Triggered copies of ``images``.

        Parameters
        ----------
        images:
            float32 in [0, 1], N x C x H x W; not to be modified.
        labels:
            int64, N: true classes.
        indices:
            int64, N: stable ids of the samples; only sample-specific triggers look at them.

        """

    @abc.abstractmethod
    def state(self) -> dict[str, Tensor]:
        """The tensors that make this trigger; stored, and given to :meth:`Attack.restore`."""


class Attack(Method[P]):
    """Plants a backdoor. The label map, rate, basis and index policy come from the configuration,
    which derives from :class:`backdoorkit.PoisonOptions`; the attack itself is its trigger.

    A *data* attack poisons the training set. One whose configuration says ``controls_training``
    trains the victim itself, on the clean images, by :meth:`control`.
    """

    @abc.abstractmethod
    def prepare(self, data: ImageSet, context: Context) -> Trigger:
        """Make the trigger; ``data`` is the attacker's (clean) training set.

        What takes long is made by :meth:`backdoorkit.api.Context.asset`, once for many runs.
        """

    @abc.abstractmethod
    def restore(self, state: Mapping[str, Tensor]) -> Trigger:
        """The trigger again, from what :meth:`Trigger.state` returned."""

    def for_training(self, trigger: Trigger) -> Trigger:
        """What is planted in training images, where that is another than at test time.

        Some papers have it fainter. The default is the trigger itself.
        """
        return trigger

    def cover(self, trigger: Trigger, epoch: int | None = None) -> Trigger | None:
        """What a cover gets, which keeps its true label, in place of the trigger.

        None where this attack has no covers of its own: then those of a source-specific map are
        triggered images of the classes that are left alone. ``epoch`` is that of a controlled
        training, where covers may be drawn anew; None for training sets that do not change and for
        test images.
        """
        del trigger, epoch
        return None

    def wanted_labels(
        self, trigger: Trigger, labels: Tensor, ids: Tensor, num_classes: int
    ) -> Tensor:
        """int64, N: the label that the attacker wants for each *test* image once it is triggered.

        -1 where the image is not attacked; it then counts for no metric of the attack. ``labels``
        are the true classes and ``ids`` the stable ids in the test split, both int64, N. The
        default follows the label map.
        """
        from backdoorkit.data.choosing import map_labels

        del trigger, ids
        return map_labels(labels, self.config, num_classes)

    def poison(self, data: ImageSet, trigger: Trigger, context: Context) -> PoisonedSet:
        """The training set that the victim gets from a data attack.

        The default draws ``poison_rate`` of ``rate_basis``, applies the trigger, quantises by
        rounding and relabels by the label map; then covers, where the options ask for them.
        """
        from backdoorkit.data.poison import poison_by_options

        generator = context.generator("poisoned indices")
        planted, cover = self.for_training(trigger), self.cover(trigger)
        return poison_by_options(data, planted, self.config, generator, cover=cover)

    def control(self, trigger: Trigger, data: ImageSet, context: Context) -> AttackHooks | None:
        """Hooks into the victim's training on the clean ``data``; None for a data attack.

        Called where ``config.controls_training``. The default poisons batch by batch where the
        index policy says so. After the training, the hooks' ``trigger`` is the attack's.
        """
        from backdoorkit.control import PerBatchPoisoning

        del context
        if not self.config.controls_training:
            return None
        return PerBatchPoisoning(self, trigger, data)

    def freeze(
        self, data: ImageSet, trigger: Trigger, context: Context, rate: float | None = None
    ) -> PoisonedSet:
        """A poisoned training set that does not change, for defenses that work on data.

        ``trigger`` is that of a victim whose training was controlled, ``rate`` replaces the
        configured poisoning rate. Training on this set is not the attack; it shows a defense what
        the attacker's samples look like.
        """
        if rate is None:
            return self.poison(data, trigger, context)
        config = attrs.evolve(self.config, poison_rate=rate)
        return type(self)(config).poison(data, trigger, context)


@attrs.frozen(kw_only=True, eq=False)
class DefenseResult:
    """A repaired model and what the method has to say about it."""

    model: nn.Module
    #: JSON-ready facts for the record: chosen level, units pruned, epochs used, stop reason...
    details: Mapping[str, Any] = attrs.field(factory=dict)
    #: tensors worth keeping (scores per layer, masks), stored beside the model
    tensors: Mapping[str, Tensor] = attrs.field(factory=dict)


class Defense(Method[C]):
    """Turns a model that may hold a backdoor into one that should not."""

    def check(self, structure: Structure) -> None:
        """Refuse (with :class:`backdoorkit.errors.StructureError`) a model this cannot work on.

        Called before anything runs, on an untrained model of the same architecture.
        """
        del structure

    @abc.abstractmethod
    def run(self, task: DefenseTask, context: Context) -> DefenseResult:
        """Repair ``task.model``, a private copy which may be changed in place and returned."""


class InputFilter(abc.ABC):
    """Watches the inputs of a model in use; a detector fits it, and the framework rates it.

    Its fitting sees what the detector declared. What it is rated on, clean and triggered test
    images, comes afterwards, batch by batch, without a word on which is which.
    """

    @property
    @abc.abstractmethod
    def threshold(self) -> float:
        """Score above which an input is rejected."""

    @abc.abstractmethod
    def score(self, images: Tensor) -> Tensor:
        """Suspicion of each input (floating point, N); higher is more suspicious.

        ``images`` are float32 in [0, 1], N x C x H x W, on the run's device. An image's score must
        not depend on the others of its batch. No gradients are kept.
        """


@attrs.frozen(kw_only=True, eq=False)
class DetectionResult:
    """What a detector says: of the model, of its training samples, of inputs to come.

    At least one of ``score``, ``sample_scores`` and ``input_filter`` is there. Higher scores are
    more suspicious.
    """

    #: of the model; None from a detector that judges only samples or inputs
    score: float | None = None
    #: model's score above which it is called backdoored
    threshold: float | None = None
    #: the class that the backdoor leads to
    target: int | None = None
    #: floating point, N: of each training sample, in the order of ``task.training_data``
    sample_scores: Tensor | None = None
    #: bool, N: the training samples that the detector would remove
    flagged_samples: Tensor | None = None
    #: watches inputs at inference
    input_filter: InputFilter | None = None
    #: JSON-ready facts for the record
    details: Mapping[str, Any] = attrs.field(factory=dict)
    #: tensors worth keeping, stored beside the verdict
    tensors: Mapping[str, Tensor] = attrs.field(factory=dict)
    #: figures by name, and their captions, as of :class:`AnalysisResult`
    figures: Mapping[str, Figure] = attrs.field(factory=dict)
    captions: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def detected(self) -> bool | None:
        """Whether the score is above the threshold; None where either is not given."""
        if self.score is None or self.threshold is None:
            return None
        return self.score > self.threshold


class Detector(Method[C]):
    """Says whether a model holds a backdoor, or which samples carry its trigger."""

    def check(self, structure: Structure) -> None:
        """As :meth:`Defense.check`."""
        del structure

    @abc.abstractmethod
    def run(self, task: DetectionTask, context: Context) -> DetectionResult:
        """Judge ``task.model``, a private copy."""


@attrs.frozen(kw_only=True, eq=False)
class AnalysisResult:
    """What an analysis found: numbers for the table, figures for the report."""

    #: finite numbers by short name, a few; None where one is undefined
    values: Mapping[str, float | None]
    #: JSON-ready: what is too long for the table (numbers by layer, by epoch...)
    details: Mapping[str, Any] = attrs.field(factory=dict)
    #: tensors worth keeping (scores per layer...), stored beside the figures
    tensors: Mapping[str, Tensor] = attrs.field(factory=dict)
    #: figures by name (lower-case words joined by '-'); :func:`backdoorkit.api.new_figure` makes
    #: them
    figures: Mapping[str, Figure] = attrs.field(factory=dict)
    #: what is to be seen in a figure, by its name
    captions: Mapping[str, str] = attrs.field(factory=dict)


class Analysis(Method[C]):
    """Looks at a victim with the truth in hand, to understand it: never a defense.

    It may be given what no defender has: the trigger, who was poisoned, the clean twin, test data.
    """

    def check(self, structure: Structure) -> None:
        """As :meth:`Defense.check`."""
        del structure

    @abc.abstractmethod
    def run(self, task: AnalysisTask, context: Context) -> AnalysisResult:
        """Examine ``task.model``, a private copy."""


@attrs.frozen(kw_only=True)
class MetricValue:
    """One number with what it was counted from."""

    #: a share in [0, 1] unless the metric says otherwise; None where it is undefined
    value: float | None
    numerator: int | None = None
    denominator: int | None = None
    #: which images counted
    rule: str = ""
    #: confidence interval of the value, in its unit; None is an end that the data do not bound
    interval: tuple[float | None, float | None] | None = None
    #: whether it is shown as percent
    is_share: bool = True


class Metric(Method[C]):
    """Computes numbers from stored per-sample predictions; never sees a model."""

    @abc.abstractmethod
    def compute(self, evaluation: Evaluation) -> Mapping[str, MetricValue]:
        """Values by column name, such as ``{"ACC": MetricValue(...)}``."""


class DetectionMetric(Method[C]):
    """Rates detectors by how well their scores tell what is backdoored from what is not.

    A metric of this sort declares ``Need.VERDICTS`` and nothing else.
    """

    @abc.abstractmethod
    def rate(self, scores: DetectionScores) -> Mapping[str, MetricValue]:
        """Values by column name; which columns there are may depend on ``scores.of``."""


class Dataset(Method[C]):
    """A source of labelled images with a training and a test split."""

    @abc.abstractmethod
    def load(self, split: str, cache: Path) -> ImageSet:
        """Images of ``split`` (``"train"`` or ``"test"``); downloads go below ``cache``."""

    def fingerprint(self) -> str:
        """Changes whenever the images may have changed; part of every key below the data step."""
        return ""


class Architecture(Method[C]):
    """Builds untrained networks that take images as float32 in [0, 1] after normalisation."""

    @abc.abstractmethod
    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """A network for C x H x W images, without normalisation, on the CPU.

        Initial weights come from torch's global generator, which the framework seeds and restores
        around this call (torch's own initialisers take no generator).
        """


if TYPE_CHECKING:
    #: Raises unless the run permits oracle selection; test attack success of a model in [0, 1].
    Oracle = Callable[[nn.Module], float]
    Device = torch.device
