"""Carries out a recipe: plan, early refusals, steps, table, record.

A step that fails is reported in its cells and does not stop the others. What is in the store is
not made again, so that a run which was interrupted goes on where it was when it is started again.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch

from backdoorkit.errors import BackdoorkitError, InputError
from backdoorkit.hooks.info import Kind
from backdoorkit.pipeline.collect import collect
from backdoorkit.pipeline.keys import content_key
from backdoorkit.pipeline.plan import Plan, Step, StepKind, make_plan
from backdoorkit.pipeline.preflight import check_methods, check_weights
from backdoorkit.pipeline.rating import rate
from backdoorkit.pipeline.record import write_run
from backdoorkit.pipeline.steps import make
from backdoorkit.pipeline.workshop import Workshop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backdoorkit.context import Progress
    from backdoorkit.contracts import Executor
    from backdoorkit.hooks.registry import Registry
    from backdoorkit.pipeline.recipe import DataChoice, Recipe
    from backdoorkit.pipeline.results import Table
    from backdoorkit.pipeline.store import Artifact, Store

__all__ = ["Run", "RunResult", "StepResult", "chosen_device", "run_recipe"]

log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class StepResult:
    """How a step ended."""

    step: Step
    #: what it made; None where it failed
    artifact: Artifact | None
    #: found in the store, not made in this run
    reused: bool = False
    error: str | None = None


@attrs.define(kw_only=True)
class Run:
    """What lifecycle hooks see."""

    recipe: Recipe
    plan: Plan
    #: where the record, the table and the report are written
    directory: Path
    device: str
    #: results so far, by step key
    results: dict[str, StepResult] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class RunResult:
    """What a finished run returns."""

    #: the plan, and what each step made
    run: Run
    table: Table
    directory: Path
    report: Path
    failed: bool
    #: by a name that tells them apart; without those that failed
    victims: Mapping[str, Artifact] = attrs.field(factory=dict)


def run_recipe(
    recipe: Recipe, registry: Registry, store: Store, *, progress: Progress
) -> RunResult:
    """Carry out a recipe and write its record.

    Raises
    ------
    InputError
        where the recipe cannot be carried out at all; nothing has been trained then.

    """
    device = chosen_device(recipe.device)
    workshop = Workshop(
        registry=registry, store=store, device=device, oracle=recipe.oracle, progress=progress
    )
    plan = make_plan(
        recipe,
        data_fingerprint=lambda choice: _fingerprint(registry, choice),
        file_fingerprint=_file_digest,
    )
    run = Run(
        recipe=recipe,
        plan=plan,
        directory=_directory(recipe, store),
        device=device.type,
    )
    started = datetime.datetime.now(datetime.UTC)
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.threads or threads)
    registry.run_begin(run)
    failure: BaseException | None = None
    try:
        _prepare(run, workshop)
        _execute(run, workshop)
        table = collect(run, rate(run, workshop))
        report = write_run(run, table, started=started)
    except BaseException as error:
        failure = error
        raise
    finally:
        torch.set_num_threads(threads)
        registry.run_end(run, failure)
    return RunResult(
        run=run,
        table=table,
        directory=run.directory,
        report=report,
        failed=table.failed,
        victims=_victims(run),
    )


def _victims(run: Run) -> dict[str, Artifact]:
    entries = run.plan.entries
    shown = [
        name
        for name in ("attack", "data", "model", "seed")
        if name == "attack" or len({getattr(entry, name) for entry in entries}) > 1
    ]
    return {
        " ".join(str(getattr(entry, name)) for name in shown): artifact
        for entry in entries
        if (artifact := run.results[entry.victim.key].artifact) is not None
    }


def _prepare(run: Run, workshop: Workshop) -> None:
    """Split the data, then refuse what cannot work, before anything is trained.

    A data set that cannot be read ends the run: no cell could be filled.
    """
    for step in run.plan.of_kind(StepKind.DATA):
        run.results[step.key] = _carry_out(run, workshop, step, raising=True)
    check_weights(run.plan, workshop)
    check_methods(run.plan, workshop)
    for step in run.plan.of_kind(StepKind.POISON):
        run.results[step.key] = _carry_out(run, workshop, step, raising=True)


def _execute(run: Run, workshop: Workshop) -> None:
    registry = workshop.registry
    method = registry.find(run.recipe.executor, Kind.EXECUTOR)
    executor: Executor[Any] = registry.create(method, method.info.config())

    def carry_out(step: Step) -> StepResult:
        run.results[step.key] = _carry_out(run, workshop, step)
        return run.results[step.key]

    executor.execute([step for step in run.plan.steps if step.key not in run.results], carry_out)


def _carry_out(run: Run, workshop: Workshop, step: Step, *, raising: bool = False) -> StepResult:
    found = workshop.store.get(step.kind.value, step.key)
    if found is None:
        for needed in step.inputs.values():
            error = run.results[needed.key].error
            if error is not None:
                return StepResult(step=step, artifact=None, error=error)

    def carry_out(run: Run, step: Step) -> StepResult:
        del run
        if found is not None:
            return StepResult(step=step, artifact=found, reused=True)
        return StepResult(step=step, artifact=make(workshop, step))

    try:
        result: StepResult = workshop.registry.step(run, step, carry_out)
    except Exception as error:
        if raising and isinstance(error, InputError):
            raise
        return StepResult(step=step, artifact=None, error=_explain(run, step, error))
    return result


def _explain(run: Run, step: Step, error: Exception) -> str:
    """One line for the table; the whole traceback goes into the run's folder."""
    folder = run.directory / "errors"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{step.kind.value}-{step.key[:16]}.txt"
    path.write_text("".join(traceback.format_exception(error)))
    message = str(error) if isinstance(error, BackdoorkitError) else repr(error)
    line = " ".join(message.split())
    log.warning("failed: %s: %s (details in %s)", step.label, line, path)
    return line


def chosen_device(choice: str) -> torch.device:
    """The device that a recipe's words mean; raises InputError where there is none such."""
    if choice == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(choice)
    except RuntimeError:
        raise InputError(f"device must be auto, cpu or cuda (cuda:1...), not {choice!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda was asked for, and there is none; use auto or cpu")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device must be auto, cpu or cuda (cuda:1...), not {choice!r}")
    return device


def _directory(recipe: Recipe, store: Store) -> Path:
    """The same recipe always writes to the same folder, so that a second run replaces the first."""
    return store.root / "runs" / f"{recipe.name}-{content_key(recipe=recipe.to_toml())[:8]}"


def _fingerprint(registry: Registry, choice: DataChoice) -> str:
    dataset = registry.create(choice.method, choice.config)
    fingerprint: str = dataset.fingerprint()
    return fingerprint


def _file_digest(path: Any) -> str:
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"weights {path} cannot be read: {error.strerror}") from None
