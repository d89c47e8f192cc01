"""Joining a Ray cluster, and what it has place for."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

from backdoorkit.executing import InputError, footprint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType

    from backdoorkit.executing import Step, WorkOrder
    from backdoorkit_ray import RayOptions

__all__ = ["demand", "import_ray", "join", "require_place"]

_GIBIBYTE = 1 << 30
_TIMEOUT = 5.0


def import_ray() -> ModuleType:
    """Ray itself; InputError where it is not installed."""
    # Nobody was asked whether Ray may report what it is used for.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise InputError(
            "the executor ray needs Ray, which is not installed; install it (pip install ray), or "
            "run with --jobs on this machine"
        ) from None
    return ray


def join(ray: ModuleType, options: RayOptions, order: WorkOrder) -> bool:
    """Connect to the cluster; whether it is to be left at the end.

    Raises
    ------
    InputError
        where no cluster answers, or it is of another version.

    """
    if ray.is_initialized():
        return False
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    common = {"log_to_driver": False, "logging_level": "error"}
    try:
        with _own_signals():
            if address == "local":
                cpus = None if order.jobs is None else order.jobs * order.threads
                ray.init(address=address, num_cpus=cpus, include_dashboard=False, **common)
            else:
                _require_answer(address)
                ray.init(address=address, **common)
    except InputError:
        raise
    except Exception as error:  # Ray raises whatever happened on the way
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(
            f"no Ray cluster can be joined at {address}: {reason}; its Ray must be of the same "
            "version, and one that asks for a token needs RAY_AUTH_MODE=token"
        ) from error
    return True


def _require_answer(address: str) -> None:
    """Ray itself would wait for minutes for a head that is not there."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not colon or not port.isdigit() or not host:
        raise InputError(
            f"the address of a Ray cluster is HOST:PORT, ray://HOST:PORT or auto, not {address!r}"
        )
    try:
        socket.create_connection((host, int(port)), _TIMEOUT).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"no Ray cluster answers at {address} ({error}); start one there (ray start --head), "
            "or leave the address out to use this machine"
        ) from None


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray has SIGTERM end the process at once, and with it the run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def demand(step: Step, options: RayOptions, order: WorkOrder, *, gpu: bool) -> dict[str, Any]:
    """What a step's task asks for: arguments of ``ray.remote``."""
    place = footprint(step, order.threads)
    light = place.gpus < 1
    asked: dict[str, Any] = {"num_cpus": place.cpus if light else options.cpus or place.cpus}
    if gpu:
        asked["num_gpus"] = options.light_gpus if light else options.gpus
    if options.memory:
        asked["memory"] = int(options.memory * _GIBIBYTE / (2 if light else 1))
    return asked


def require_place(asked: Mapping[str, float], label: str, nodes: list[Mapping[str, Any]]) -> None:
    """Refuse a step that no node could ever take, for which Ray would wait without an end.

    Raises
    ------
    InputError
        naming what the step asks for, and what the largest nodes have.

    """
    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if any(all(n.get(names[k], 0) >= v for k, v in asked.items()) for n in alive):
        return
    wanted = ", ".join(_words(names[name], value) for name, value in asked.items() if value)
    offered = "; ".join(
        ", ".join(_words(name, node.get(name, 0)) for name in names.values()) for node in alive
    )
    raise InputError(
        f"no node of the cluster has place for '{label}', which asks for {wanted} (nodes have: "
        f"{offered}); ask for less (executor.cpus, .gpus, .memory), or say that nodes are still to "
        "come (executor.autoscaling = true)"
    )


def _words(name: str, value: float) -> str:
    return f"{value / _GIBIBYTE:.1f} GiB" if name == "memory" else f"{value:g} {name}"
