"""One small method of each kind, for tests of what surrounds methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from backdoorkit import MethodInfo, Need, PoisonOptions, Selection, Stage, hookimpl, option
from backdoorkit.api import (
    Analysis,
    AnalysisResult,
    AnalysisTask,
    Architecture,
    Attack,
    Context,
    Dataset,
    Defense,
    DefenseResult,
    DefenseTask,
    DetectionResult,
    DetectionTask,
    Detector,
    Evaluation,
    Executor,
    ImageSet,
    Metric,
    MetricValue,
    Structure,
    StructureError,
    Trigger,
    new_figure,
)
from backdoorkit.testing.tiny import PatchTrigger, TinyNetwork, tiny_images

#: what ran, in order: tests look at it to see what was found in the store
CALLS: list[str] = []


@attrs.frozen(kw_only=True)
class NoOptions:
    """Nothing to choose."""


@attrs.frozen(kw_only=True)
class ToyDefenseOptions:
    """How the toy defense behaves."""

    behavior: str = option("scale head", help="What it does to the model, or how it fails.")
    selection: Selection = option(Selection.FIXED, help="How it would choose a level.")


class ToyData(Dataset[NoOptions]):
    def load(self, split: str, cache: Path) -> ImageSet:
        CALLS.append(f"load {split}")
        return tiny_images(192 if split == "train" else 64, seed=1 if split == "train" else 2)

    def fingerprint(self) -> str:
        return "toy 1"


class ToyArchitecture(Architecture[NoOptions]):
    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return TinyNetwork(image_shape[0], num_classes)


class ToyAttack(Attack[PoisonOptions]):
    def prepare(self, data: ImageSet, context: Context) -> Trigger:
        CALLS.append("prepare")
        context.note(patch_quality=0.875)
        return PatchTrigger()

    def restore(self, state: dict[str, Tensor]) -> Trigger:
        return PatchTrigger()


class ToyDefense(Defense[ToyDefenseOptions]):
    def check(self, structure: Structure) -> None:
        if self.config.behavior == "refuse":
            raise StructureError("conv1 has no norm after it, and this needs one")

    def run(self, task: DefenseTask, context: Context) -> DefenseResult:
        CALLS.append(f"defend {self.config.behavior}")
        model = task.model
        details: dict[str, Any] = {"clean": len(task.clean)}
        match self.config.behavior:
            case "scale head":
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.mul_(0.999)
            case "reach for training data":
                details["n"] = len(task.training_data)
            case "raise":
                raise RuntimeError("something\nunforeseen")
            case "break weights":
                with torch.no_grad():
                    next(iter(model.parameters())).fill_(float("nan"))
            case "other architecture":
                model = nn.Sequential(model)
            case "draw globally":
                details["draw"] = float(torch.rand(()))
            case "oracle":
                details["asr"] = context.oracle(model)
        return DefenseResult(model=model, details=details, tensors={"scores": torch.ones(3)})


class ToyDetector(Detector[NoOptions]):
    def run(self, task: DetectionTask, context: Context) -> DetectionResult:
        logits = task.query(torch.zeros(1, *task.image_shape))
        return DetectionResult(score=float(logits.max()), threshold=1e9, target=0)


class ToyAnalysis(Analysis[NoOptions]):
    """Looks at all it may be given."""

    def run(self, task: AnalysisTask, context: Context) -> AnalysisResult:
        CALLS.append("analyze")
        test, plain = task.test, task.clean
        planted = task.plant(test)
        success = context.accuracy(task.model, planted)
        twins = context.accuracy(task.clean_twin, planted)
        figure, (axes,) = new_figure()
        axes.plot([0, 1], [success, twins])
        return AnalysisResult(
            values={
                "success": success,
                "twin's success": twins,
                "poisoned": int((task.kinds == 1).sum()),
                "nothing": None,
            },
            details={"reserve": len(plain), "training": len(task.training_data)},
            tensors={"kinds": task.kinds},
            figures={"toy-figure": figure},
            captions={"toy-figure": "Success <b>here</b> & there."},
        )


class ToyGlance(Analysis[NoOptions]):
    """Needs nothing of an attack."""

    def run(self, task: AnalysisTask, context: Context) -> AnalysisResult:
        return AnalysisResult(values={"accuracy": context.accuracy(task.model, task.test)})


class ToyMetric(Metric[NoOptions]):
    def compute(self, evaluation: Evaluation) -> dict[str, MetricValue]:
        clean = evaluation.clean
        hits = int((clean.predicted == clean.labels).sum())
        values = {"ACC": MetricValue(value=hits / len(clean.labels), numerator=hits)}
        if evaluation.triggered is not None:
            counted = evaluation.triggered.eligible
            values["ASR"] = MetricValue(
                value=float(evaluation.triggered.hits[counted].double().mean())
            )
        return values


class ToyExecutor(Executor[NoOptions]):
    """Says what it was given, and carries it out twice: the second time all is found done."""

    def execute(self, steps: Any, carry_out: Any) -> None:
        CALLS.append("execute " + " ".join(step.kind.value for step in steps))
        assert not any(carry_out(step).reused for step in steps)
        assert all(carry_out(step).reused for step in steps)


class ToyPoisonMetric(Metric[NoOptions]):
    """Looks at everything an evaluation may hold; what was not declared must be missing."""

    def compute(self, evaluation: Evaluation) -> dict[str, MetricValue]:
        poisoned = None if evaluation.poison is None else int(evaluation.poison.kinds.sum())
        return {
            "poisoned": MetricValue(value=poisoned),
            "has baseline": MetricValue(value=float(evaluation.baseline is not None)),
            "outputs": MetricValue(value=len(evaluation.outputs)),
        }


def _info(name: str, implementation: str, config: type, **more: Any) -> MethodInfo:
    return MethodInfo(
        name=name,
        summary="A toy.",
        implementation=f"toy_methods:{implementation}",
        config=config,
        **more,
    )


@hookimpl
def backdoorkit_datasets() -> list[MethodInfo]:
    return [_info("toy-data", "ToyData", NoOptions)]


@hookimpl
def backdoorkit_models() -> list[MethodInfo]:
    return [_info("toy-network", "ToyArchitecture", NoOptions)]


@hookimpl
def backdoorkit_attacks() -> list[MethodInfo]:
    presets = {"released": {"poison_rate": 0.05}}
    return [_info("toy-attack", "ToyAttack", PoisonOptions, stage=Stage.DATA, presets=presets)]


@hookimpl
def backdoorkit_defenses() -> list[MethodInfo]:
    needs = frozenset({Need.WEIGHTS, Need.CLEAN_SAMPLES})
    return [_info("toy-defense", "ToyDefense", ToyDefenseOptions, needs=needs)]


@hookimpl
def backdoorkit_detectors() -> list[MethodInfo]:
    return [_info("toy-detector", "ToyDetector", NoOptions, needs=frozenset({Need.QUERIES}))]


@hookimpl
def backdoorkit_analyses() -> list[MethodInfo]:
    glance = frozenset({Need.WEIGHTS, Need.TEST_DATA})
    truth = {Need.TRIGGER, Need.CLEAN_TWIN, Need.POISON_RECORD}
    everything = glance | truth | {Need.CLEAN_SAMPLES, Need.TRAINING_DATA}
    return [
        _info("toy-analysis", "ToyAnalysis", NoOptions, needs=everything),
        _info("toy-glance", "ToyGlance", NoOptions, needs=glance),
    ]


@hookimpl
def backdoorkit_metrics() -> list[MethodInfo]:
    plain = frozenset({Need.PREDICTIONS})
    record = plain | {Need.POISON_RECORD}
    return [
        _info("toy-metric", "ToyMetric", NoOptions, needs=plain),
        _info("toy-poison-metric", "ToyPoisonMetric", NoOptions, needs=record),
        _info("toy-blind-metric", "ToyPoisonMetric", NoOptions, needs=plain),
    ]


@hookimpl
def backdoorkit_executors() -> list[MethodInfo]:
    return [_info("toy-executor", "ToyExecutor", NoOptions)]
