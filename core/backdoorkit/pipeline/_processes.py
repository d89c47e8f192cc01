"""Steps side by side in worker processes on this machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from backdoorkit.pipeline._pool import WorkerPool
from backdoorkit.pipeline.catalog import ProcessesOptions
from backdoorkit.pipeline.dispatch import in_order
from backdoorkit.placing import Executor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backdoorkit.pipeline.orders import WorkOrder
    from backdoorkit.pipeline.plan import Step
    from backdoorkit.placing import CarryOut

__all__ = ["Processes"]


class Processes(Executor[ProcessesOptions]):
    """As many workers as steps may run at once, each started when it is first needed."""

    _pool: WorkerPool | None = None

    def open(self, order: WorkOrder) -> None:
        """Remember what workers are to be told; none is started yet."""
        order.require_portable()
        self._at_once = order.jobs or max(1, (os.cpu_count() or 1) // order.threads)
        self._pool = WorkerPool(
            order,
            ["-m", "backdoorkit.pipeline._worker_process"],
            devices=_devices(order.device),
            retries=self.config.retries,
        )

    def execute(self, steps: Sequence[Step], carry_out: CarryOut) -> None:
        """Each step on the first worker that is free."""
        pool = self._pool
        assert pool is not None
        in_order(
            steps,
            lambda step: carry_out(step, lambda progress: pool.made(step, progress)),
            at_once=self._at_once,
            stop=pool.close,
        )

    def close(self) -> None:
        """End all workers; a step that goes on is interrupted."""
        if self._pool is not None:
            self._pool.close()


def _devices(device: str) -> list[str]:
    """What workers may run on: all GPUs in turn, where nothing else was said."""
    if device != "auto":
        return [device]
    import torch

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or [device]
