"""What defenses, detectors and analyses must keep, shown on the tiny victim."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from torch import Tensor, nn

from backdoorkit.contracts import (
    Analysis,
    AnalysisResult,
    Defense,
    DefenseResult,
    DetectionResult,
    Detector,
)
from backdoorkit.errors import StructureError
from backdoorkit.figures import png_bytes
from backdoorkit.hooks.info import Kind
from backdoorkit.pipeline import envelope
from backdoorkit.testing._subject import (
    CheckSkippedError,
    Subject,
    require,
    require_untouched,
    watched_global_state,
)
from backdoorkit.testing.tiny import (
    NUM_CLASSES,
    copy_state,
    tiny_context,
    tiny_network,
    tiny_victim,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backdoorkit.context import Context
    from backdoorkit.hooks.info import MethodInfo
    from backdoorkit.tasks import AnalysisTask, DefenseTask, DetectionTask

__all__ = ["ANALYSIS_CHECKS", "DEFENSE_CHECKS", "DETECTOR_CHECKS"]


#: characters of a column's title
_LONGEST_NAME: Final = 24


@attrs.frozen(eq=False, kw_only=True)
class _Run:
    """One run of a method on the tiny victim, and what it left behind."""

    result: Any
    #: state of torch's global generator when the method's own code ended
    generator_after: Tensor
    #: global generators and switches that it changed
    changed: list[str]
    #: tensors of the shared victim that it wrote into
    written: list[str]


def run_defense(
    defense: Defense[Any], info: MethodInfo, context: Context
) -> tuple[DefenseResult, Tensor]:
    """Run a defense in the framework's envelope; also the generator's state at its end."""
    watched = _WatchedDefense(defense)
    resources = tiny_victim().resources(context.device)
    return envelope.run_defense(watched, info, resources, context), watched.generator_after


def run_detector(
    detector: Detector[Any], info: MethodInfo, context: Context
) -> tuple[DetectionResult, Tensor]:
    """As :func:`run_defense`."""
    watched = _WatchedDetector(detector)
    resources = tiny_victim().resources(context.device)
    return envelope.run_detector(watched, info, resources, context), watched.generator_after


def run_analysis(
    analysis: Analysis[Any], info: MethodInfo, context: Context
) -> tuple[AnalysisResult, Tensor]:
    """As :func:`run_defense`."""
    watched = _WatchedAnalysis(analysis)
    victim = tiny_victim()
    resources, truth = victim.resources(context.device), victim.truth(context.device)
    result = envelope.run_analysis(watched, info, resources, truth, context)
    return result, watched.generator_after


class _WatchedDefense(Defense[Any]):
    def __init__(self, inner: Defense[Any]) -> None:
        super().__init__(inner.config)
        self.inner = inner
        self.generator_after = torch.empty(0)

    def run(self, task: DefenseTask, context: Context) -> DefenseResult:
        result = self.inner.run(task, context)
        self.generator_after = torch.get_rng_state()
        return result


class _WatchedDetector(Detector[Any]):
    def __init__(self, inner: Detector[Any]) -> None:
        super().__init__(inner.config)
        self.inner = inner
        self.generator_after = torch.empty(0)

    def run(self, task: DetectionTask, context: Context) -> DetectionResult:
        result = self.inner.run(task, context)
        self.generator_after = torch.get_rng_state()
        return result


class _WatchedAnalysis(Analysis[Any]):
    def __init__(self, inner: Analysis[Any]) -> None:
        super().__init__(inner.config)
        self.inner = inner
        self.generator_after = torch.empty(0)

    def run(self, task: AnalysisTask, context: Context) -> AnalysisResult:
        result = self.inner.run(task, context)
        self.generator_after = torch.get_rng_state()
        return result


# -- checks of all ---------------------------------------------------------------------------------


def accepts_the_tiny_victim(subject: Subject) -> None:
    """``check`` lets a plain convolutional network pass, and refuses only by StructureError."""
    subject.once("accepting the tiny victim", lambda: _accept(subject))


def runs_with_what_it_declares(subject: Subject) -> None:
    """It runs on the CPU, given what ``needs`` declares, and its result is well-formed."""
    _run(subject)


def leaves_what_is_global_alone(subject: Subject) -> None:
    """No global generator is seeded or drawn from, and no switch of torch is changed."""
    first, other = _run(subject), _run(subject, seed=1)
    require_untouched(first.changed)
    require(
        not torch.equal(first.generator_after, other.generator_after),
        "it seeds torch's global generator; draw from context.generator(purpose)",
    )


def leaves_its_inputs_alone(subject: Subject) -> None:
    """The shared victim, the reserve and the training data are not written to."""
    written = _run(subject).written
    require(not written, f"it wrote into {', '.join(written)}; work on copies")


def accepts_another_seed(subject: Subject) -> None:
    """It runs with another seed, too."""
    _run(subject, seed=1)


def runs_on_cuda(subject: Subject) -> None:
    """It runs on a CUDA device, where there is one."""
    if not torch.cuda.is_available():
        raise CheckSkippedError("no CUDA device")
    _run(subject, device="cuda")


def details_are_json(subject: Subject) -> None:
    """What it has to tell can be stored as JSON and read again."""
    details = dict(_run(subject).result.details)
    again = json.loads(json.dumps(details, allow_nan=False))
    require(all(isinstance(key, str) for key in details), "details must have text as keys")
    require(again.keys() == details.keys(), f"details became {again!r}")


# -- defenses --------------------------------------------------------------------------------------


def same_seed_gives_the_same_weights(subject: Subject) -> None:
    """Two runs with one seed give the same bits, whatever was drawn before."""
    first = copy_state(_run(subject).result.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        second = copy_state(_run(subject, key="a second run").result.model)
    different = [name for name in first if not torch.equal(first[name], second[name])]
    require(not different, f"weights differ between two runs, first in {different[:1]}")


def repaired_model_works(subject: Subject) -> None:
    """Its logits have the victim's shape and are finite."""
    logits = _logits(_run(subject).result.model)
    count = len(tiny_victim().test)
    require(logits.shape == (count, NUM_CLASSES), f"logits have shape {tuple(logits.shape)}")
    require(bool(logits.isfinite().all()), "logits are not finite")


def repaired_model_is_its_weights(subject: Subject) -> None:
    """Its weights in a fresh network give the same logits: no hook or mask is left beside them."""
    model: nn.Module = _run(subject).result.model
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        require(not any(hooks), f"a hook is left on {name or 'the model'}; remove it")
    fresh = tiny_network()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(_logits(fresh), _logits(model), rtol=1e-4, atol=1e-4)


DEFENSE_CHECKS: Final[tuple[Callable[[Subject], None], ...]] = (
    accepts_the_tiny_victim,
    runs_with_what_it_declares,
    repaired_model_works,
    repaired_model_is_its_weights,
    details_are_json,
    same_seed_gives_the_same_weights,
    accepts_another_seed,
    leaves_what_is_global_alone,
    leaves_its_inputs_alone,
    runs_on_cuda,
)


# -- detectors -------------------------------------------------------------------------------------


def verdict_is_well_formed(subject: Subject) -> None:
    """Score and threshold are finite numbers or None, the target is a class."""
    result: DetectionResult = _run(subject).result
    for name in ("score", "threshold"):
        value = getattr(result, name)
        finite = isinstance(value, int | float) and math.isfinite(value)
        # A detector of samples or inputs has no word on the model; the envelope sees to the rest.
        allowed = finite or value is None
        require(allowed, f"{name} must be a finite number, not {value!r}")
    target = result.target
    is_class = type(target) is int and 0 <= target < NUM_CLASSES
    require(target is None or is_class, f"target must be a class or None, not {target!r}")


def figures_of_the_verdict_can_be_drawn(subject: Subject) -> None:
    """Every figure becomes a PNG and has a caption."""
    figures_can_be_drawn(subject)


def inputs_are_scored_one_by_one(subject: Subject) -> None:
    """An input's score is a number that does not depend on the rest of its batch."""
    found: DetectionResult = _run(subject).result
    if found.input_filter is None:
        raise CheckSkippedError("it has no input filter")
    images = tiny_victim().test.images[:12].float() / 255
    with torch.inference_mode():
        together = found.input_filter.score(images)
        parts = [found.input_filter.score(part) for part in torch.split(images, [1, 4, 7])]
    require(together.shape == (12,), f"12 inputs have scores of shape {tuple(together.shape)}")
    require(bool(together.isfinite().all()), "scores are not finite")
    require(math.isfinite(found.input_filter.threshold), "the threshold is not finite")
    torch.testing.assert_close(torch.cat(parts), together, rtol=1e-3, atol=1e-4)


def same_seed_gives_the_same_verdict(subject: Subject) -> None:
    """Two runs with one seed agree, whatever was drawn before."""
    first: DetectionResult = _run(subject).result
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        second: DetectionResult = _run(subject, key="a second run").result
    require(
        (first.score, first.target) == (second.score, second.target),
        f"score and target were {first.score}, {first.target}, "
        f"then {second.score}, {second.target}",
    )
    if first.sample_scores is not None:
        same = second.sample_scores is not None and torch.equal(
            first.sample_scores, second.sample_scores
        )
        require(same, "scores of training samples differ between two runs")


DETECTOR_CHECKS: Final[tuple[Callable[[Subject], None], ...]] = (
    accepts_the_tiny_victim,
    runs_with_what_it_declares,
    verdict_is_well_formed,
    inputs_are_scored_one_by_one,
    figures_of_the_verdict_can_be_drawn,
    details_are_json,
    same_seed_gives_the_same_verdict,
    accepts_another_seed,
    leaves_what_is_global_alone,
    leaves_its_inputs_alone,
    runs_on_cuda,
)


# -- analyses --------------------------------------------------------------------------------------


def finds_something(subject: Subject) -> None:
    """There are numbers for the table, by names that fit into it."""
    values = _run(subject).result.values
    require(bool(values), "it returned no values")
    long = [name for name in values if not name or len(name) > _LONGEST_NAME]
    require(not long, f"the value {long[:1]} needs a name of 1 to {_LONGEST_NAME} characters")


def figures_can_be_drawn(subject: Subject) -> None:
    """Every figure becomes a PNG and has a caption."""
    result: AnalysisResult | DetectionResult = _run(subject).result
    for name, figure in result.figures.items():
        png_bytes(figure)
        require(bool(result.captions.get(name)), f"figure {name!r} has no caption")


def same_seed_gives_the_same_values(subject: Subject) -> None:
    """Two runs with one seed agree, whatever was drawn before."""
    first = dict(_run(subject).result.values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        second = dict(_run(subject, key="a second run").result.values)
    different = [name for name in first if first[name] != second.get(name)]
    require(not different, f"values differ between two runs, first in {different[:1]}")


ANALYSIS_CHECKS: Final[tuple[Callable[[Subject], None], ...]] = (
    accepts_the_tiny_victim,
    runs_with_what_it_declares,
    finds_something,
    figures_can_be_drawn,
    details_are_json,
    same_seed_gives_the_same_values,
    accepts_another_seed,
    leaves_what_is_global_alone,
    leaves_its_inputs_alone,
    runs_on_cuda,
)


# -- shared ----------------------------------------------------------------------------------------


def _run(subject: Subject, *, seed: int = 0, device: str = "cpu", key: str = "") -> _Run:
    def make() -> _Run:
        method = subject.create()
        context = tiny_context(subject.name, seed=seed, device=device)
        run = _RUNNERS[subject.kind]
        before = _inputs()
        with watched_global_state() as changed:
            result, generator_after = run(method, subject.info, context)
        after = _inputs()
        written = [name for name in before if not torch.equal(after[name], before[name])]
        return _Run(
            result=result, generator_after=generator_after, changed=changed, written=written
        )

    subject.once("accepting the tiny victim", lambda: _accept(subject))
    if seed or key or device != "cpu":
        _run(subject)  # where the plain run fails, the others say nothing new
    return subject.once(key or f"the run with seed {seed} on {device}", make)


def _accept(subject: Subject) -> None:
    context = tiny_context(subject.name)
    try:
        subject.create().check(context.structure(tiny_network()))
    except StructureError as refusal:
        raise CheckSkippedError(f"it refuses the tiny victim: {refusal}") from None


def _inputs() -> Mapping[str, Tensor]:
    victim = tiny_victim()
    weights = {f"the victim's {k}": v for k, v in copy_state(victim.model).items()}
    return {
        **weights,
        "the reserve's images": victim.reserve.images.clone(),
        "the reserve's labels": victim.reserve.labels.clone(),
        "the training images": victim.poisoned.data.images.clone(),
        "the training labels": victim.poisoned.data.labels.clone(),
        "the poison record": victim.poisoned.kinds.clone(),
        "the test images": victim.test.images.clone(),
    }


def _logits(model: nn.Module) -> Tensor:
    model = model.cpu().eval()
    images = tiny_victim().test.images.float() / 255
    with torch.inference_mode():
        logits: Tensor = model(images)
    return logits


_RUNNERS: Final[Mapping[Kind, Callable[[Any, MethodInfo, Context], tuple[Any, Tensor]]]] = {
    Kind.DEFENSE: run_defense,
    Kind.DETECTOR: run_detector,
    Kind.ANALYSIS: run_analysis,
}
