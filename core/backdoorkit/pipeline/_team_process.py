"""What the processes of a team run, and what starts them.

``python -m backdoorkit.pipeline._team_process N`` starts N processes with torch's own launcher and
ends when they have ended. The first of them, the leader, is a worker as
:mod:`backdoorkit.pipeline._worker_process` describes; it calls the others when it trains a victim.
"""

from __future__ import annotations

import datetime
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Final

from backdoorkit.pipeline import _worker_process

if TYPE_CHECKING:
    import queue

__all__ = ["launch"]

_MODULE: Final = "backdoorkit.pipeline._team_process"
#: Longest time from one training to the next: dead processes are noticed by the launcher.
_PATIENCE: Final = datetime.timedelta(days=30)
#: Seconds before a failed process says why.
_LAST_WORDS: Final = 6.0


def launch(processes: int) -> int:
    """Start the processes, wait for them and return the exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What goes wrong is told by the worker, or by whoever finds it dead.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        run_id=str(os.getpid()),
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, sys.executable)("-P", "-m", _MODULE)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return abs(failure.exitcode) or 1
    except SignalException as signal:
        return 128 + signal.sigval
    return 0


def _lead(lines: queue.SimpleQueue[str | None], sender: _worker_process.Sender) -> None:
    from backdoorkit._team import Team

    _join()
    order = lines.get()
    _say(order)
    if order is None:
        return
    _worker_process.serve(
        _with_own_device(order), lines, sender, lambda key: Team(lambda: _say(key))
    )
    _say(None)


def _follow() -> None:
    """Take part in what the leader calls to, until it ends."""
    os.dup2(2, 1)
    try:
        _assist()
    except Exception as error:
        # Where the leader is gone, the launcher ends this process now, and all was told.
        time.sleep(_LAST_WORDS)
        line = " ".join(f"{type(error).__name__}: {error}".split())
        sys.stderr.write(f"process {os.environ['RANK']} of the team failed: {line}\n")
        sys.stderr.flush()
        os._exit(1)


def _assist() -> None:
    from backdoorkit._team import Team, teamwork
    from backdoorkit.errors import BackdoorkitError
    from backdoorkit.pipeline.orders import WorkOrder
    from backdoorkit.pipeline.worker import StepWorker

    _join()
    if (order := _hear()) is None:
        return
    worker: StepWorker | None = None
    while (key := _hear()) is not None:
        if worker is None:
            worker = StepWorker(WorkOrder.from_json(_with_own_device(order)))
        try:
            with teamwork(Team()):
                worker.assist(key)
        except BackdoorkitError:
            continue  # the leader has met the same, and tells it


def _join() -> None:
    """Join the process group: collectives on both sorts of memory, waiting as long as it takes."""
    import torch
    from torch import distributed

    gpus = torch.cuda.is_available() and distributed.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    distributed.init_process_group(backend, timeout=_PATIENCE)


def _say(word: str | None) -> None:
    """Tell all others."""
    import torch
    from torch import distributed

    distributed.broadcast_object_list([word], src=0, device=torch.device("cpu"))


def _hear() -> str | None:
    """What the leader says next."""
    import torch
    from torch import distributed

    words: list[str | None] = [None]
    distributed.broadcast_object_list(words, src=0, device=torch.device("cpu"))
    return words[0]


def _with_own_device(order: str) -> str:
    """The order, for this process's GPU where the team is to work on GPUs."""
    import attrs

    from backdoorkit.pipeline.orders import WorkOrder

    parsed = WorkOrder.from_json(order)
    if parsed.device != "cuda":
        return order
    return attrs.evolve(parsed, device=f"cuda:{os.environ['LOCAL_RANK']}").to_json()


if __name__ == "__main__":
    if "RANK" not in os.environ:
        # Ctrl-C on a terminal is for the run, which then ends the leader.
        os.setsid()
        sys.exit(launch(int(sys.argv[1])))
    if os.environ["RANK"] == "0":
        _worker_process.main(_lead)
    else:
        _follow()
