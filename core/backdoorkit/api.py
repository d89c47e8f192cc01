"""Everything a method's implementation may import from the framework, and nothing else.

Light modules (hook implementations, configurations) import from :mod:`backdoorkit` instead, which
does not import torch.
"""

from __future__ import annotations

from backdoorkit.context import Context
from backdoorkit.contracts import (
    Architecture,
    Attack,
    Dataset,
    Defense,
    DefenseResult,
    DetectionResult,
    Detector,
    Executor,
    Metric,
    MetricValue,
    Trigger,
)
from backdoorkit.data.augmentation import Augmentation
from backdoorkit.data.batches import Batch, batches
from backdoorkit.data.images import ImageSet
from backdoorkit.data.poison import PoisonedSet, SampleKind, poison_by_options, quantize
from backdoorkit.errors import ContractError, InputError, StructureError
from backdoorkit.evaluation import Evaluation, Predictions
from backdoorkit.masking import MaskedModel, by_layer, masked, masked_layers, prune_by_masks
from backdoorkit.models.structure import (
    ConvNormPair,
    PrunableLayer,
    Structure,
    find_structure,
)
from backdoorkit.selection import largest_accepted, split_reserve
from backdoorkit.tasks import DefenseTask, DetectionTask
from backdoorkit.training import EpochMetrics, TrainingHooks, TrainingSummary

__all__ = [
    "Architecture",
    "Attack",
    "Augmentation",
    "Batch",
    "Context",
    "ContractError",
    "ConvNormPair",
    "Dataset",
    "Defense",
    "DefenseResult",
    "DefenseTask",
    "DetectionResult",
    "DetectionTask",
    "Detector",
    "EpochMetrics",
    "Evaluation",
    "Executor",
    "ImageSet",
    "InputError",
    "MaskedModel",
    "Metric",
    "MetricValue",
    "PoisonedSet",
    "Predictions",
    "PrunableLayer",
    "SampleKind",
    "Structure",
    "StructureError",
    "TrainingHooks",
    "TrainingSummary",
    "Trigger",
    "batches",
    "by_layer",
    "find_structure",
    "largest_accepted",
    "masked",
    "masked_layers",
    "poison_by_options",
    "prune_by_masks",
    "quantize",
    "split_reserve",
]
