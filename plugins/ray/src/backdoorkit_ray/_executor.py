"""Steps of a run as Ray tasks: Ray finds the places and tries again what was lost."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from backdoorkit.executing import (
    Executor,
    InputError,
    LostWorkerError,
    Replay,
    StoppedError,
    Store,
    in_order,
)
from backdoorkit_ray import RayOptions
from backdoorkit_ray._cluster import demand, import_ray, join, require_place
from backdoorkit_ray._mirror import Mirror
from backdoorkit_ray._remote import BEGIN, Board, carry_out

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from backdoorkit.executing import CarryOut, Event, Progress, Step, WorkOrder

__all__ = ["RayExecutor"]

log = logging.getLogger(__name__)

#: Seconds between two looks at a step's progress.
_POLL: Final = 0.5
#: Seconds that steps are given to tidy up when the run is interrupted.
_GRACE: Final = 5.0


class RayExecutor(Executor[RayOptions]):
    """Hands steps to a cluster, in the order of the plan, as soon as they can begin."""

    def __init__(self, config: RayOptions) -> None:
        super().__init__(config)
        self._ray: Any = None
        self._leave = False
        self._stopping = False
        self._running: set[Any] = set()
        #: keys of steps that have begun on some worker
        self._begun: set[str] = set()
        self._lock = threading.Lock()

    def open(self, order: WorkOrder) -> None:
        """Join the cluster, and see that artifacts can travel."""
        order.require_portable()
        if order.device.startswith("cuda:"):
            raise InputError(
                f"Ray chooses the GPU of each step; device must be auto, cpu or cuda, not "
                f"{order.device!r}"
            )
        self._storage = _absolute(self.config.storage)
        self._mirror = None if self._storage is None else Mirror(self._storage)
        if self._mirror is not None:
            self._mirror.require_writable()
        self._ray = import_ray()
        self._leave = join(self._ray, self.config, order)
        gpus = self._ray.cluster_resources().get("GPU", 0)
        self._gpu = order.device == "cuda" or (order.device == "auto" and gpus > 0)
        self._order = order
        self._store = Store(order.store)
        node_store = order.store if self._mirror is None else self.config.node_store or ""
        device = "cuda" if self._gpu else "cpu"
        self._told = attrs.evolve(order, device=device, store=node_store).to_json()
        self._task = self._ray.remote(carry_out)
        # It only passes messages on, and must not take the place of a step.
        self._board = self._ray.remote(Board).options(num_cpus=0, max_restarts=-1).remote()

    def execute(self, steps: Sequence[Step], carry_out: CarryOut) -> None:
        """One task for each step that is not in the store."""
        if not self.config.autoscaling:
            self._require_places(steps)
        in_order(
            steps,
            lambda step: carry_out(step, lambda progress: self._made(step, progress)),
            at_once=self._order.jobs or self.config.at_once,
            stop=self._cancel,
        )

    def close(self) -> None:
        """Leave the cluster, or end it where it was started for this run."""
        if self._ray is None:
            return
        if hasattr(self, "_board"):
            self._ray.kill(self._board)
        if self._leave:
            self._ray.shutdown()
        self._ray = None

    # -- one step ----------------------------------------------------------------------------------

    def _made(self, step: Step, progress: Progress) -> Mapping[str, Any]:
        if self._mirror is not None:
            for needed in _closure(step):
                self._share(self._mirror, needed)
        outcome = self._carried_out(step, progress)
        if self._mirror is not None and outcome["made"]:
            self._mirror.download(step.kind.value, step.key, self._store)
        return outcome

    def _carried_out(self, step: Step, progress: Progress) -> Mapping[str, Any]:
        replay = Replay(progress)
        with self._submitted(step) as task:
            try:
                while not self._ray.wait([task], timeout=_POLL)[0]:
                    self._show(step, replay)
                    if self._stopping:
                        raise StoppedError
                self._show(step, replay)
                outcome: Mapping[str, Any] = self._ray.get(task)
            except self._ray.exceptions.RayError as error:
                if self._stopping:
                    raise StoppedError from None
                raise self._lost(error) from error
            finally:
                replay.end()
        return outcome

    @contextlib.contextmanager
    def _submitted(self, step: Step) -> Iterator[Any]:
        asked = self._demand(step)
        with self._lock:
            if self._stopping:
                raise StoppedError
            task = self._task.options(
                **asked, max_retries=self.config.retries, name=step.label
            ).remote(self._told, self._storage, step.key, self._board)
            self._running.add(task)
        try:
            yield task
        finally:
            # What goes on although nobody waits for it any more is cancelled with the run.
            if self._ray.wait([task], timeout=0)[0]:
                with self._lock:
                    self._running.discard(task)

    def _show(self, step: Step, replay: Replay) -> None:
        """What the step's worker has told; progress that is lost does not matter."""
        events: list[Event] = []
        with contextlib.suppress(self._ray.exceptions.RayError):
            events = self._ray.get(self._board.take.remote(step.key), timeout=_GRACE)
        for event in events:
            if event[0] == BEGIN:
                if step.key in self._begun:
                    log.warning("%s: its worker was lost; it is tried again", step.label)
                self._begun.add(step.key)
                replay.end()
            else:
                replay.show(event)

    def _lost(self, error: Exception) -> LostWorkerError:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        if isinstance(error, self._ray.exceptions.RayTaskError):
            # Steps report their own faults: this is one of the node, where something is missing.
            return LostWorkerError(f"its Ray worker could not begin: {lines[-1]}")
        times = self.config.retries + 1
        return LostWorkerError(
            f"its Ray worker was lost {times} times ({type(error).__name__}: {lines[0]}); "
            "executor.retries allows more"
        )

    def _demand(self, step: Step) -> dict[str, Any]:
        return demand(step, self.config, self._order, gpu=self._gpu)

    def _require_places(self, steps: Sequence[Step]) -> None:
        labels = {json.dumps(self._demand(step)): step.label for step in reversed(steps)}
        nodes = self._ray.nodes()
        for asked, label in labels.items():
            require_place(json.loads(asked), label, nodes)

    def _share(self, mirror: Mirror, step: Step) -> None:
        """Have what a step starts from where all nodes find it."""
        if mirror.has(step.kind.value, step.key):
            return
        artifact = self._store.get(step.kind.value, step.key)
        if artifact is not None:
            mirror.upload(artifact)

    def _cancel(self) -> None:
        with self._lock:
            self._stopping = True
            running = list(self._running)
        for force in (False, True):
            for task in running:
                with contextlib.suppress(self._ray.exceptions.RayError, ValueError):
                    self._ray.cancel(task, force=force)
            if running:
                _, running = self._ray.wait(running, num_returns=len(running), timeout=_GRACE)


def _closure(step: Step) -> list[Step]:
    """All that a step starts from, and what that starts from."""
    found: dict[str, Step] = {}
    waiting = list(step.inputs.values())
    while waiting:
        needed = waiting.pop()
        if needed.key not in found:
            found[needed.key] = needed
            waiting += needed.inputs.values()
    return list(found.values())


def _absolute(storage: str | None) -> str | None:
    """A folder's path as every process finds it; a URL as it is."""
    if storage is None or "://" in storage:
        return storage
    return str(Path(storage).expanduser().absolute())
