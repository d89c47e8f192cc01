"""Everything an executor's implementation may import from the framework, besides the public API.

An executor is a place where steps run. One that makes them in other processes is told by
``docs/authors/executors.md`` how the pieces fit; the core's own ``processes`` is an example.
"""

from __future__ import annotations

from backdoorkit._progress import Progress
from backdoorkit.errors import DamagedArtifactError, InputError, LostWorkerError
from backdoorkit.pipeline.dispatch import StoppedError, in_order
from backdoorkit.pipeline.orders import Footprint, WorkOrder, footprint
from backdoorkit.pipeline.plan import Step
from backdoorkit.pipeline.relay import Event, EventProgress, LogEvents, Replay
from backdoorkit.pipeline.store import MANIFEST, Artifact, Draft, Store
from backdoorkit.pipeline.worker import StepWorker, failure
from backdoorkit.placing import CarryOut, Executor

__all__ = [
    "MANIFEST",
    "Artifact",
    "CarryOut",
    "DamagedArtifactError",
    "Draft",
    "Event",
    "EventProgress",
    "Executor",
    "Footprint",
    "InputError",
    "LogEvents",
    "LostWorkerError",
    "Progress",
    "Replay",
    "Step",
    "StepWorker",
    "StoppedError",
    "Store",
    "WorkOrder",
    "failure",
    "footprint",
    "in_order",
]
