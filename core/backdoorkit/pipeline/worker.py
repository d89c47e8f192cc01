"""Makes steps of a run in another process than the run's, whoever started that process.

A worker is given a :class:`WorkOrder` and makes the registry, the recipe and the plan again; a key
then says which step is meant. What it makes is in the store afterwards; what it says of it is plain
values: ``{"made": true}``, or ``{"made": false}`` with ``message`` (one line), ``details`` (the
traceback) and ``refused`` (whether something given by the user cannot be used).
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from typing import TYPE_CHECKING, Any

import torch

from backdoorkit._progress import SILENT
from backdoorkit.errors import BackdoorkitError, ContractError, InputError
from backdoorkit.hooks.registry import load_registry
from backdoorkit.pipeline.devices import chosen_device
from backdoorkit.pipeline.fingerprints import plan_of
from backdoorkit.pipeline.orders import require_same_versions
from backdoorkit.pipeline.recipe import Recipe
from backdoorkit.pipeline.steps import make
from backdoorkit.pipeline.store import Store
from backdoorkit.pipeline.victims import train_along
from backdoorkit.pipeline.workshop import Workshop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backdoorkit._progress import Progress
    from backdoorkit.pipeline.orders import WorkOrder

__all__ = ["RemoteError", "RemoteInputError", "StepWorker", "failure", "raise_failure"]


class RemoteError(BackdoorkitError):
    """A step failed in a worker; ``details`` is the traceback there."""

    def __init__(self, message: str, details: str) -> None:
        self.details = details
        super().__init__(message)


class RemoteInputError(RemoteError, InputError):
    """A worker refused what the user gave."""

    exit_code = InputError.exit_code


class StepWorker:
    """Makes steps of one run.

    Parameters
    ----------
    order:
        Says which run.
    store:
        Where artifacts are; by default the directory that the order names.

    Raises
    ------
    BackdoorkitError
        where the plan cannot be made here: other versions, missing plugins or files.

    """

    def __init__(self, order: WorkOrder, store: Store | None = None) -> None:
        registry = load_registry(allow=order.plugins)
        require_same_versions(order, registry)
        torch.set_num_threads(order.threads)
        recipe = Recipe.from_mapping(order.recipe, registry)
        self._workshop = Workshop(
            registry=registry,
            store=Store(order.store) if store is None else store,
            device=chosen_device(order.device),
            oracle=recipe.oracle,
            progress=SILENT,
        )
        self._steps = {step.key: step for step in plan_of(recipe, registry).steps}

    def carry_out(self, key: str, progress: Progress = SILENT) -> dict[str, Any]:
        """Make the step, unless it is in the store, and say how it ended; failures never raise."""
        self._workshop.progress = progress
        try:
            step = self._steps.get(key)
            if step is None:
                raise ContractError(
                    "the worker's plan lacks this step: data or files that the recipe names are "
                    "others there than where the run was started"
                )
            # Results go their own way, whatever a method prints.
            with contextlib.redirect_stdout(sys.stderr):
                make(self._workshop, step)
        except Exception as error:
            return failure(error)
        return {"made": True}

    def assist(self, key: str) -> None:
        """Take a part in the training of the victim ``key``, which another process stores.

        The same team (:mod:`backdoorkit._team`) must be at work in both.
        """
        train_along(self._workshop, self._steps[key])


def failure(error: Exception) -> dict[str, Any]:
    """How a step ended that raised ``error``."""
    message = str(error) if isinstance(error, BackdoorkitError) else repr(error)
    return {
        "made": False,
        "message": message,
        "details": "".join(traceback.format_exception(error)),
        "refused": isinstance(error, InputError),
    }


def raise_failure(outcome: Mapping[str, Any]) -> None:
    """Raise, where the run was started, what a worker says went wrong."""
    if not outcome["made"]:
        error = RemoteInputError if outcome["refused"] else RemoteError
        raise error(outcome["message"], outcome["details"])
