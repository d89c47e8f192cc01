"""Everything a method's implementation may import from the framework, and nothing else.

Light modules (hook implementations, configurations) import from :mod:`backdoorkit` instead, which
does not import torch.
"""

from __future__ import annotations

from backdoorkit._penultimate import (
    collect_features,
    predictions_without,
    refuse_other_head,
    require_linear_head,
)
from backdoorkit._ranking import area_under_curve
from backdoorkit._second_gradient import SecondGradient
from backdoorkit.context import Context
from backdoorkit.contracts import (
    Analysis,
    AnalysisResult,
    Architecture,
    Attack,
    Dataset,
    Defense,
    DefenseResult,
    DetectionMetric,
    DetectionResult,
    Detector,
    InputFilter,
    Metric,
    MetricValue,
    Trigger,
)
from backdoorkit.control import AttackHooks, PerBatchPoisoning
from backdoorkit.data.augmentation import Augmentation
from backdoorkit.data.batches import Batch, batches
from backdoorkit.data.choosing import NOT_ATTACKED, choose_positions, map_labels
from backdoorkit.data.contents import contents_digest
from backdoorkit.data.images import ImageSet
from backdoorkit.data.noise import uniform_by_sample
from backdoorkit.data.poison import (
    PoisonedSet,
    SampleKind,
    poison_by_options,
    quantize,
    require_image_shape,
)
from backdoorkit.detection import DetectionScores
from backdoorkit.errors import ContractError, InputError, StructureError
from backdoorkit.evaluation import Evaluation, Predictions
from backdoorkit.figures import new_figure
from backdoorkit.hooks.published import PublishedFigures, PublishedTable, read_published
from backdoorkit.masking import MaskedModel, by_layer, masked, masked_layers, prune_by_masks
from backdoorkit.models.frozen import frozen_copy
from backdoorkit.models.structure import (
    ConvNormPair,
    PrunableLayer,
    Structure,
    find_structure,
)
from backdoorkit.placing import CarryOut, Executor
from backdoorkit.report.pictures import Sheet, contact_sheet
from backdoorkit.selection import largest_accepted, split_reserve
from backdoorkit.surrogates import train_surrogate
from backdoorkit.tasks import AnalysisTask, DefenseTask, DetectionTask
from backdoorkit.training import EpochMetrics, TrainingHooks, TrainingSummary
from backdoorkit.unlearning import Unlearned, Unlearning, chance, unlearn
from backdoorkit.watching import Observer

__all__ = [
    "NOT_ATTACKED",
    "Analysis",
    "AnalysisResult",
    "AnalysisTask",
    "Architecture",
    "Attack",
    "AttackHooks",
    "Augmentation",
    "Batch",
    "CarryOut",
    "Context",
    "ContractError",
    "ConvNormPair",
    "Dataset",
    "Defense",
    "DefenseResult",
    "DefenseTask",
    "DetectionMetric",
    "DetectionResult",
    "DetectionScores",
    "DetectionTask",
    "Detector",
    "EpochMetrics",
    "Evaluation",
    "Executor",
    "ImageSet",
    "InputError",
    "InputFilter",
    "MaskedModel",
    "Metric",
    "MetricValue",
    "Observer",
    "PerBatchPoisoning",
    "PoisonedSet",
    "Predictions",
    "PrunableLayer",
    "PublishedFigures",
    "PublishedTable",
    "SampleKind",
    "SecondGradient",
    "Sheet",
    "Structure",
    "StructureError",
    "TrainingHooks",
    "TrainingSummary",
    "Trigger",
    "Unlearned",
    "Unlearning",
    "area_under_curve",
    "batches",
    "by_layer",
    "chance",
    "choose_positions",
    "collect_features",
    "contact_sheet",
    "contents_digest",
    "find_structure",
    "frozen_copy",
    "largest_accepted",
    "map_labels",
    "masked",
    "masked_layers",
    "new_figure",
    "poison_by_options",
    "predictions_without",
    "prune_by_masks",
    "quantize",
    "read_published",
    "refuse_other_head",
    "require_image_shape",
    "require_linear_head",
    "split_reserve",
    "train_surrogate",
    "uniform_by_sample",
    "unlearn",
]
