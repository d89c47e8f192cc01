"""Ray: steps of a run as tasks of a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from backdoorkit import MethodInfo, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["RayOptions", "backdoorkit_executors"]


@attrs.frozen(kw_only=True)
class RayOptions:
    """Which cluster, how artifacts travel, and what steps ask of it."""

    address: str | None = option(
        None,
        help="The cluster: HOST:PORT of its head, ray://HOST:PORT, or auto for one that this "
        "machine belongs to. Default: RAY_ADDRESS, else a cluster of this machine alone that ends "
        "with the run.",
    )
    storage: str | None = option(
        None,
        help="Where artifacts travel: a folder that all nodes share, or any URL that fsspec opens "
        "(s3://bucket/path, gs://bucket/path). Default: the run's store is in such a folder, under "
        "the same path on all nodes.",
    )
    node_store: str | None = option(
        None,
        help="With storage, a folder of each node for copies and checkpoints. Default: "
        "backdoorkit-ray in the node's temporary folder.",
    )
    retries: int = option(
        2, ge=0, help="How often a step is tried again whose worker or node was lost."
    )
    at_once: int = option(
        64, ge=1, help="Steps handed to the cluster at once, unless jobs says how many."
    )
    cpus: float | None = option(
        None,
        gt=0,
        help="Cores that a training, a defense, a detector or an analysis asks for. Default: the "
        "recipe's threads, else one. Small steps ask for one.",
    )
    gpus: float = option(
        1.0,
        ge=0,
        help="GPUs that these ask for, where the cluster has any and the device is not cpu; a "
        "share of one lets several run on it.",
    )
    light_gpus: float = option(
        0.25, ge=0, le=1, help="Share of a GPU that small steps ask for: evaluation, metrics."
    )
    memory: float = option(
        2.0, ge=0, help="Main memory in GiB that a step asks for; small ones ask for half. 0: none."
    )
    autoscaling: bool = option(
        False,
        help="Wait for nodes that the cluster does not have yet, instead of refusing a run that "
        "no node has place for.",
    )


@hookimpl
def backdoorkit_executors() -> Iterable[MethodInfo]:
    """Several machines, or several GPUs."""
    yield MethodInfo(
        name="ray",
        summary="Steps as tasks of a Ray cluster, on many machines and GPUs.",
        reference="Moritz et al.: Ray, A Distributed Framework for Emerging AI Applications, "
        "OSDI 2018",
        implementation="backdoorkit_ray._executor:RayExecutor",
        config=RayOptions,
    )
