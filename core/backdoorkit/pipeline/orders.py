"""What another process is told so that it can make a step: plain values, which JSON can carry.

Steps have content keys, so it is enough to say from which recipe a plan is to be made, where the
store is, and the key of the step. Who makes the plan again finds the same step, or none at all.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, Final

import attrs

import backdoorkit
from backdoorkit.errors import ContractError, InputError
from backdoorkit.hooks._loading import PluginState
from backdoorkit.pipeline.catalog import IN_PROCESS
from backdoorkit.pipeline.plan import StepKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backdoorkit.hooks.registry import Method, Registry
    from backdoorkit.pipeline.plan import Step
    from backdoorkit.pipeline.recipe import Recipe
    from backdoorkit.pipeline.store import Store

__all__ = ["Footprint", "WorkOrder", "footprint", "require_same_versions", "work_order"]

_CORE: Final = "backdoorkit"
#: How a run is carried out; of no importance to who makes one step of it.
_OF_THE_RUN: Final = ("executor", "jobs", "observers", "published")


@attrs.frozen(kw_only=True)
class WorkOrder:
    """Everything needed to make any step of one run in another process or on another machine."""

    #: the resolved recipe, as :meth:`Recipe.to_mapping` gives it
    recipe: dict[str, Any]
    #: directory of the store
    store: str
    #: as in a recipe; an executor may choose another for each worker
    device: str
    #: processor threads of each worker
    threads: int
    #: steps that may run at once; None: as many as the executor finds place for
    jobs: int | None
    #: entry names of the plugins that the run uses
    plugins: tuple[str, ...]
    #: by distribution, the core's too
    versions: dict[str, str]
    #: methods that only the run's own process has, since they were registered there
    local: tuple[str, ...] = ()
    #: level of :mod:`logging` below which a worker says nothing
    log_level: int = logging.WARNING

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(attrs.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> WorkOrder:
        """What :meth:`to_json` wrote."""
        values = json.loads(text)
        return cls(
            **{
                **values,
                "plugins": tuple(values["plugins"]),
                "local": tuple(values["local"]),
            }
        )

    def require_portable(self) -> None:
        """Refuse a run whose methods another process cannot find.

        Raises
        ------
        InputError
            naming them.

        """
        if self.local:
            raise InputError(
                f"{', '.join(self.local)} was registered in this process, so that another process "
                "cannot find it; install it as a plugin, or run with jobs = 1 in this process"
            )


def work_order(recipe: Recipe, registry: Registry, store: Store) -> WorkOrder:
    """The order of a run."""
    mapping = {k: v for k, v in recipe.to_mapping().items() if k not in _OF_THE_RUN}
    methods = list(_methods(recipe))
    installed = {
        record.name: record
        for record in registry.plugins
        if record.state is PluginState.OK and record.module
    }
    local = dict.fromkeys(m.qualified_name for m in methods if m.plugin not in installed)
    return WorkOrder(
        recipe={**mapping, "executor": IN_PROCESS},
        store=str(store.root),
        device=recipe.device,
        threads=recipe.threads or 1,
        jobs=recipe.jobs,
        plugins=tuple(installed),
        versions={
            _CORE: backdoorkit.__version__,
            **{m.distribution: m.version for m in methods if m.plugin in installed},
        },
        local=tuple(local),
        log_level=logging.getLogger().getEffectiveLevel(),
    )


def require_same_versions(order: WorkOrder, registry: Registry) -> None:
    """Refuse to work where other versions are installed than where the run was started.

    Raises
    ------
    ContractError
        naming the distributions and both versions.

    """
    here = {method.distribution: method.version for method in registry.methods()}
    here[_CORE] = backdoorkit.__version__
    faults = [
        f"{name} {here.get(name, 'is missing')} instead of {version}"
        for name, version in order.versions.items()
        if here.get(name) != version
    ]
    if faults:
        raise ContractError(
            f"the worker has other versions than the run: {', '.join(faults)}; install the same "
            "ones there"
        )


def _methods(recipe: Recipe) -> Iterator[Method]:
    from backdoorkit.pipeline.recipe import NO_ATTACK, ComposedChoice

    rooms = (recipe.data, recipe.models, recipe.attacks, recipe.defenses, recipe.detectors)
    for room in (*rooms, recipe.analyses, recipe.metrics):
        for choice in room:
            parts = choice.parts if isinstance(choice, ComposedChoice) else (choice,)
            yield from (part.method for part in parts if part.name != NO_ATTACK)


# -- what a step takes -----------------------------------------------------------------------------

#: Steps that do a pass over some images at most; a GPU has room for several of them.
_LIGHT: Final = frozenset(
    {StepKind.DATA, StepKind.FREEZE, StepKind.EVALUATE, StepKind.MEASURE},
)
_GIBIBYTE: Final = 1 << 30


@attrs.frozen(kw_only=True)
class Footprint:
    """What a step takes while it runs, roughly: for whoever has to find a place for it."""

    #: processor cores
    cpus: float
    #: of one GPU, in [0, 1], where it runs on a GPU at all
    gpus: float
    #: bytes of main memory
    memory: int


def footprint(step: Step, threads: int = 1) -> Footprint:
    """What a step takes: little where it only looks at a model or at numbers, else a whole place.

    Preparing an attack counts as much as a training, since some train a network for it.
    """
    if step.kind in _LIGHT or _is_taken_over(step):
        return Footprint(cpus=1, gpus=0.25, memory=_GIBIBYTE)
    return Footprint(cpus=threads, gpus=1.0, memory=2 * _GIBIBYTE)


def _is_taken_over(step: Step) -> bool:
    """Whether it is a victim that is not trained but read from files."""
    if step.kind is not StepKind.VICTIM:
        return False
    return "folder" in step.choices or step.choices["model"].weights is not None
