"""Trainings of victims by several processes together; all other steps in this process."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import attrs
import torch

from backdoorkit.errors import InputError
from backdoorkit.pipeline._pool import WorkerPool
from backdoorkit.pipeline.catalog import TorchrunOptions
from backdoorkit.pipeline.victims import can_be_shared
from backdoorkit.placing import Executor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backdoorkit.pipeline.orders import WorkOrder
    from backdoorkit.pipeline.plan import Step
    from backdoorkit.placing import CarryOut

__all__ = ["Torchrun"]


class Torchrun(Executor[TorchrunOptions]):
    """One step after the other; the processes are started for the first training."""

    _pool: WorkerPool | None = None

    def open(self, order: WorkOrder) -> None:
        """Refuse what cannot be shared, and find out how many processes there are to be."""
        order.require_portable()
        if order.jobs not in (None, 1):
            raise InputError(
                f"torchrun has all processes train one model at a time; leave jobs = {order.jobs} "
                "out, or use the executor processes"
            )
        if order.recipe["train"].get("compile"):
            raise InputError("torchrun cannot share a compiled training; leave train.compile out")
        device = _device(order.device)
        processes = _processes(self.config.processes, device)
        self._pool = WorkerPool(
            attrs.evolve(order, device=device),
            ["-m", "backdoorkit.pipeline._team_process", str(processes)],
            devices=[device],
            retries=self.config.retries,
        )

    def execute(self, steps: Sequence[Step], carry_out: CarryOut) -> None:
        """Each step in its turn."""
        pool = self._pool
        assert pool is not None
        for step in steps:
            if can_be_shared(step):
                carry_out(step, functools.partial(pool.made, step))
            else:
                carry_out(step)

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.close()


def _device(chosen: str) -> str:
    """``cpu`` or ``cuda``; each process takes a GPU of its own."""
    if chosen.startswith("cuda:"):
        raise InputError(
            f"torchrun gives each process a GPU of its own; device must be auto, cpu or cuda, not "
            f"{chosen!r}"
        )
    if chosen == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return chosen


def _processes(chosen: int | None, device: str) -> int:
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    if device == "cuda" and chosen is not None and chosen > gpus:
        raise InputError(f"torchrun has {gpus} GPUs for executor.processes = {chosen}")
    if chosen is None and gpus < 2:
        raise InputError(
            "torchrun found no two GPUs to share a training; say how many processes of this "
            "machine are to: executor.processes"
        )
    return gpus if chosen is None else chosen
