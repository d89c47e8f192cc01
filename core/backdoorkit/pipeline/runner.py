"""Carries out a recipe: plan, early refusals, steps, table, record.

A step that fails is reported in its cells and does not stop the others. What is in the store is
not made again, so that a run which was interrupted goes on where it was when it is started again.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import threading
import traceback
from typing import TYPE_CHECKING, Any

import attrs
import torch

from backdoorkit.errors import BackdoorkitError, InputError
from backdoorkit.pipeline._toml import to_toml
from backdoorkit.pipeline.catalog import IN_PROCESS
from backdoorkit.pipeline.collect import collect
from backdoorkit.pipeline.devices import chosen_device
from backdoorkit.pipeline.fingerprints import plan_of
from backdoorkit.pipeline.keys import content_key
from backdoorkit.pipeline.observing import Observers
from backdoorkit.pipeline.orders import work_order
from backdoorkit.pipeline.plan import Plan, Step, StepKind
from backdoorkit.pipeline.preflight import check_methods, check_weights
from backdoorkit.pipeline.rating import rate
from backdoorkit.pipeline.record import write_plan, write_run
from backdoorkit.pipeline.steps import make
from backdoorkit.pipeline.worker import RemoteError, raise_failure
from backdoorkit.pipeline.workshop import Workshop

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from backdoorkit.context import Progress
    from backdoorkit.hooks.registry import Registry
    from backdoorkit.pipeline.recipe import Recipe
    from backdoorkit.pipeline.results import Table
    from backdoorkit.pipeline.store import Artifact, Store
    from backdoorkit.placing import Elsewhere, Executor

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
    #: once all steps have been tried
    table: Table | None = None


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
    plan = plan_of(recipe, registry)
    run = Run(
        recipe=recipe,
        plan=plan,
        directory=_directory(recipe, store),
        device=device.type,
    )
    started = datetime.datetime.now(datetime.UTC)
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.threads or threads)
    observers = Observers(recipe.observers, registry)
    registry.run_begin(run)
    observers.run_begin(run)
    failure: BaseException | None = None
    try:
        _execute(run, workshop, observers, started)
        table = run.table = collect(run, rate(run, workshop))
        report = write_run(run, table, started=started)
    except BaseException as error:
        failure = error
        raise
    finally:
        torch.set_num_threads(threads)
        observers.run_end(run, failure)
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


def _execute(
    run: Run, workshop: Workshop, observers: Observers, started: datetime.datetime
) -> None:
    """Split the data, refuse what cannot work, poison, and then all the rest.

    Data sets that cannot be read, and attacks that cannot be made, end the run before anything is
    trained.
    """
    chosen = run.recipe.executor
    executor: Executor[Any] = workshop.registry.create(chosen.method, chosen.config)
    carry_out = _CarryOut(run, workshop, observers)
    try:
        executor.open(work_order(run.recipe, workshop.registry, workshop.store))
        with carry_out.refusing():
            for step in run.plan.of_kind(StepKind.DATA):
                carry_out(step)
        check_weights(run.plan, workshop)
        check_methods(run.plan, workshop)
        write_plan(run, started=started)
        with carry_out.refusing():
            executor.execute(run.plan.of_kind(StepKind.POISON), carry_out)
        executor.execute([s for s in run.plan.steps if s.key not in run.results], carry_out)
    finally:
        executor.close()
    # Steps may have ended in any order.
    run.results = {step.key: run.results[step.key] for step in run.plan.steps}


class _CarryOut:
    """What an executor calls for every step; see :class:`backdoorkit.placing.CarryOut`."""

    def __init__(self, run: Run, workshop: Workshop, observers: Observers) -> None:
        self._run = run
        self._workshop = workshop
        self._observers = observers
        #: held while hooks run, so that no two of them run at the same time
        self._hooks = threading.Lock()
        self._refusing = False
        self._refusal: InputError | None = None

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """What a step refuses ends the run, where it otherwise fails the step alone."""
        self._refusing = True
        yield
        self._refusing = False
        if self._refusal is not None:
            raise self._refusal

    def __call__(self, step: Step, elsewhere: Elsewhere | None = None) -> StepResult:
        self._observers.step_begin(self._run, step)
        result = self._result(step, elsewhere)
        self._run.results[step.key] = result
        self._observers.step_end(self._run, result)
        return result

    def _result(self, step: Step, elsewhere: Elsewhere | None) -> StepResult:
        found = self._workshop.store.get(step.kind.value, step.key)
        if found is None and (error := self._obstacle(step)) is not None:
            return StepResult(step=step, artifact=None, error=error)

        def carry_out(run: Run, step: Step) -> StepResult:
            del run
            if found is not None:
                return StepResult(step=step, artifact=found, reused=True)
            if elsewhere is None:
                return StepResult(step=step, artifact=make(self._workshop, step))
            with _released(self._hooks):
                raise_failure(elsewhere(self._workshop.progress))
                return StepResult(step=step, artifact=self._workshop.artifact(step))

        try:
            with self._hooks:
                result: StepResult = self._workshop.registry.step(self._run, step, carry_out)
        except Exception as error:
            if self._refusing and isinstance(error, InputError):
                self._refusal = self._refusal or error
            return StepResult(step=step, artifact=None, error=_explain(self._run, step, error))
        return result

    def _obstacle(self, step: Step) -> str | None:
        """Why there is no sense in making the step."""
        if self._refusal is not None:
            return "not tried: the run was refused"
        results = self._run.results
        return next(
            (e for needed in step.inputs.values() if (e := results[needed.key].error)), None
        )


@contextlib.contextmanager
def _released(lock: threading.Lock) -> Iterator[None]:
    """For a block that may take long inside one that holds the lock."""
    lock.release()
    try:
        yield
    finally:
        lock.acquire()


def _explain(run: Run, step: Step, error: Exception) -> str:
    """One line for the table; the whole traceback goes into the run's folder."""
    folder = run.directory / "errors"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{step.kind.value}-{step.key[:16]}.txt"
    details = error.details if isinstance(error, RemoteError) else ""
    path.write_text(details or "".join(traceback.format_exception(error)))
    message = str(error) if isinstance(error, BackdoorkitError) else repr(error)
    line = " ".join(message.split())
    log.warning("failed: %s: %s (details in %s)", step.label, line, path)
    return line


def _directory(recipe: Recipe, store: Store) -> Path:
    """The same recipe always writes to the same folder, so that a second run replaces the first.

    Where and side by side with what its steps run makes no difference, nor who
    watches and what the results are compared with.
    """
    apart = ("jobs", "published", "observers")
    mapping = {key: value for key, value in recipe.to_mapping().items() if key not in apart}
    text = to_toml({**mapping, "executor": IN_PROCESS})
    return store.root / "runs" / f"{recipe.name}-{content_key(recipe=text)[:8]}"
