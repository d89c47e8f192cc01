"""What surrounds every method: copies, seeds, the declared resources, and checks of the result.

A method's own code is only its mathematics; nothing it forgets (a hook left on the model, train
mode, a frozen parameter, the global generator) can reach the next step.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import re
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from torch import Tensor, nn

from backdoorkit.contracts import AnalysisResult, DefenseResult, DetectionResult, InputFilter
from backdoorkit.errors import ContractError
from backdoorkit.hooks.info import Need
from backdoorkit.tasks import AnalysisTask, DefenseTask, DetectionTask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from backdoorkit.context import Context
    from backdoorkit.contracts import Analysis, Defense, Detector
    from backdoorkit.data.images import ImageSet
    from backdoorkit.hooks.info import MethodInfo

__all__ = ["Resources", "Truth", "run_analysis", "run_defense", "run_detector", "seeded"]

#: A figure's name becomes a file's.
_FIGURE_NAME: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class Resources:
    """Everything a defender could be given; a method gets the part that it declared."""

    def __init__(
        self,
        *,
        model: nn.Module,
        clean: ImageSet,
        training_data: Callable[[], ImageSet] | None,
        build_model: Callable[[], nn.Module],
        num_classes: int,
        image_shape: tuple[int, int, int],
    ) -> None:
        self.model = model
        self.clean = clean
        self.training_data = training_data
        self.build_model = build_model
        self.num_classes = num_classes
        self.image_shape = image_shape

    def declared(self, info: MethodInfo) -> dict[Need, Any]:
        """Private copies of what ``info`` declares.

        Raises
        ------
        ContractError
            where the run has not got it (training data of an imported model).

        """
        given: dict[Need, Any] = {}
        if Need.WEIGHTS in info.needs:
            given[Need.WEIGHTS] = _private(self.model)
        if Need.CLEAN_SAMPLES in info.needs:
            given[Need.CLEAN_SAMPLES] = self.clean
        if Need.TRAINING_DATA in info.needs:
            if self.training_data is None:
                raise ContractError(
                    f"{info.name} needs the training data, and the model was imported without any; "
                    "leave it out, or train the model in the recipe"
                )
            given[Need.TRAINING_DATA] = self.training_data()
        if Need.TRAINING_CONTROL in info.needs:
            given[Need.TRAINING_CONTROL] = self.build_model
        if Need.QUERIES in info.needs:
            given[Need.QUERIES] = _querier(_private(self.model))
        return given


@attrs.frozen(kw_only=True, eq=False)
class Truth:
    """What an analysis could be given beyond a defender's resources; None is what nobody has.

    Each is made only where it was declared.
    """

    #: gives images the trigger, and the labels that the attacker wants
    plant: Callable[[ImageSet], ImageSet] | None
    #: uint8, N: kind of each training sample
    kinds: Callable[[], Tensor | None]
    clean_twin: Callable[[], nn.Module] | None
    test: Callable[[], ImageSet]

    def declared(self, info: MethodInfo) -> dict[Need, Any]:
        """What ``info`` declares of it.

        Raises
        ------
        ContractError
            where the run has not got it.

        """
        given: dict[Need, Any] = {}
        if Need.TRIGGER in info.needs:
            given[Need.TRIGGER] = self.plant
        if Need.POISON_RECORD in info.needs:
            given[Need.POISON_RECORD] = self.kinds()
        if Need.CLEAN_TWIN in info.needs:
            twin = self.clean_twin
            given[Need.CLEAN_TWIN] = None if twin is None else _private(twin())
        if Need.TEST_DATA in info.needs:
            given[Need.TEST_DATA] = self.test()
        for need, resource in given.items():
            if resource is None:
                raise ContractError(
                    f"{info.name} needs {need.value!r}, which this run has not got; it is known "
                    "where the model is trained in the recipe, after an attack"
                )
        return given


def run_defense(
    defense: Defense[Any], info: MethodInfo, resources: Resources, context: Context
) -> DefenseResult:
    """Run a defense inside its envelope and check what it returns."""
    task = DefenseTask(
        method=info.name,
        num_classes=resources.num_classes,
        image_shape=resources.image_shape,
        resources=resources.declared(info),
    )
    with seeded(context):
        result = defense.run(task, context)
    if not isinstance(result, DefenseResult):
        raise ContractError(f"{info.name} must return a DefenseResult, not {type(result).__name__}")
    _check_json(info.name, result.details)
    _check_tensors(info.name, result.tensors)
    _check_model(info.name, result.model, resources)
    return result


def run_detector(
    detector: Detector[Any], info: MethodInfo, resources: Resources, context: Context
) -> DetectionResult:
    """Run a detector inside its envelope and check what it returns."""
    task = DetectionTask(
        method=info.name,
        num_classes=resources.num_classes,
        image_shape=resources.image_shape,
        resources=resources.declared(info),
    )
    with seeded(context):
        result = detector.run(task, context)
    if not isinstance(result, DetectionResult):
        raise ContractError(
            f"{info.name} must return a DetectionResult, not {type(result).__name__}"
        )
    _check_json(info.name, result.details)
    _check_tensors(info.name, result.tensors)
    _check_figures(info.name, result)
    _check_verdict(info.name, result)
    _check_samples(info.name, result, task)
    return result


def run_analysis(
    analysis: Analysis[Any],
    info: MethodInfo,
    resources: Resources,
    truth: Truth,
    context: Context,
) -> AnalysisResult:
    """Run an analysis inside its envelope and check what it returns."""
    task = AnalysisTask(
        method=info.name,
        num_classes=resources.num_classes,
        image_shape=resources.image_shape,
        resources={**resources.declared(info), **truth.declared(info)},
    )
    with seeded(context):
        result = analysis.run(task, context)
    if not isinstance(result, AnalysisResult):
        raise ContractError(
            f"{info.name} must return an AnalysisResult, not {type(result).__name__}"
        )
    _check_json(info.name, result.details)
    _check_tensors(info.name, result.tensors)
    _check_values(info.name, result.values)
    _check_figures(info.name, result)
    return result


@contextlib.contextmanager
def seeded(context: Context) -> Iterator[None]:
    """Give torch's global generators a known state inside, and the caller's state back after.

    Methods draw from generators they are handed; this is for torch's own layers (dropout,
    initialisers), which can draw from nothing else.
    """
    devices = [context.device] if context.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(context.generator("global").initial_seed())
        yield


def _private(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval().requires_grad_(True)


def _querier(model: nn.Module) -> Callable[[Tensor], Tensor]:
    def query(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(images)
        return logits.clone()

    return query


def _check_model(name: str, model: nn.Module, resources: Resources) -> None:
    """The result must load into the original architecture: what is saved is what was measured."""
    if not isinstance(model, nn.Module):
        raise ContractError(f"{name} must return a model, not {type(model).__name__}")
    expected = {key: value.shape for key, value in resources.model.state_dict().items()}
    came = {key: value.shape for key, value in model.state_dict().items()}
    if expected != came:
        different = sorted(
            key for key in expected.keys() | came.keys() if expected.get(key) != came.get(key)
        )
        raise ContractError(
            f"{name} returned a model of another architecture; {len(different)} entries differ, "
            f"first {different[0]!r}; fold masks into the original weights before returning"
        )
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ContractError(f"{name} returned a model with non-finite values in {key!r}")


def _check_json(name: str, details: Mapping[str, Any]) -> None:
    try:
        json.dumps(dict(details), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ContractError(f"{name} returned details that JSON cannot hold: {error}") from None


def _check_tensors(name: str, tensors: Mapping[Any, Any]) -> None:
    for key, value in tensors.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ContractError(f"{name} returned tensors[{key!r}] of {type(value).__name__}")


def _check_verdict(name: str, result: DetectionResult) -> None:
    score: Any = result.score
    if score is None:
        if result.sample_scores is None and result.input_filter is None:
            raise ContractError(
                f"{name} returned no score, sample_scores or input_filter; it must say something"
            )
    elif not isinstance(score, int | float) or math.isnan(score):
        raise ContractError(f"{name} returned the score {score!r}; it must be a number")
    if result.input_filter is not None and not isinstance(result.input_filter, InputFilter):
        raise ContractError(
            f"{name} returned an input_filter of {type(result.input_filter).__name__}; it must be "
            "an InputFilter"
        )


def _check_samples(name: str, result: DetectionResult, task: DetectionTask) -> None:
    """One score, and one flag if any, for each training sample that the detector was given."""
    scores, flags = result.sample_scores, result.flagged_samples
    if scores is None and flags is None:
        return
    wanted = (len(task.training_data),)  # raises where the need was not declared
    if scores is None or scores.shape != wanted or not scores.is_floating_point():
        what = None if scores is None else (scores.dtype, tuple(scores.shape))
        raise ContractError(f"{name}: expected sample_scores of {wanted} numbers, got {what}")
    if bool(scores.isnan().any()):
        raise ContractError(f"{name} returned sample_scores that are not numbers")
    if flags is not None and (flags.shape != wanted or flags.dtype != torch.bool):
        raise ContractError(
            f"{name}: expected flagged_samples of {wanted} truth values, got {flags.dtype}, "
            f"{tuple(flags.shape)}"
        )


def _check_values(name: str, values: Mapping[Any, Any]) -> None:
    for key, value in values.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not isinstance(key, str) or not (value is None or (is_number and math.isfinite(value))):
            raise ContractError(
                f"{name} returned values[{key!r}] = {value!r}; it must be a finite number, or None "
                "where it is undefined"
            )


def _check_figures(name: str, result: AnalysisResult | DetectionResult) -> None:
    figures: Mapping[Any, Any] = result.figures
    for key, figure in figures.items():
        if not isinstance(key, str) or not _FIGURE_NAME.fullmatch(key):
            raise ContractError(
                f"{name} returned a figure called {key!r}; names are lower-case words joined by '-'"
            )
        if not hasattr(figure, "savefig"):
            raise ContractError(
                f"{name} returned figures[{key!r}] of {type(figure).__name__}; make it with "
                "backdoorkit.api.new_figure"
            )
    if unknown := sorted(map(str, set(result.captions) - set(result.figures))):
        raise ContractError(f"{name} returned a caption for {unknown[0]!r}, which is no figure")
