"""What a check is given: one method with its configuration, and what was already made of it."""

from __future__ import annotations

import contextlib
import random
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from backdoorkit.hooks.options import option_specs
from backdoorkit.hooks.registry import resolve_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from backdoorkit.hooks.info import Kind, MethodInfo
    from backdoorkit.hooks.registry import Method, Registry

__all__ = [
    "CheckFailedError",
    "CheckSkippedError",
    "Subject",
    "require",
    "require_untouched",
    "watched_global_state",
]

T = TypeVar("T")


class CheckFailedError(AssertionError):
    """The method does not keep the contract; the message says how."""


class CheckSkippedError(Exception):
    """The check says nothing about this method; the message says why."""


def require(holds: bool, message: str) -> None:
    """Fail the check with ``message`` unless it ``holds``."""
    if not holds:
        raise CheckFailedError(message)


class Subject:
    """One method under check; ``values`` are options that make it fast enough."""

    def __init__(
        self, registry: Registry, method: Method, values: Mapping[str, Any] | None = None
    ) -> None:
        self.registry = registry
        self.method = method
        self.values = dict(values or {})
        self._made: dict[object, Any] = {}
        self._failed: dict[object, CheckSkippedError] = {}

    @property
    def info(self) -> MethodInfo:
        return self.method.info

    @property
    def kind(self) -> Kind:
        return self.method.kind

    @property
    def name(self) -> str:
        return self.method.name

    @cached_property
    def config(self) -> Any:
        """The method's configuration with :attr:`values`."""
        required = [spec.name for spec in option_specs(self.info.config) if spec.required]
        missing = [name for name in required if name not in self.values]
        if missing:
            raise CheckSkippedError(f"needs a value for the option {missing[0]!r}")
        return resolve_config(self.method, self.values)

    def create(self) -> Any:
        """A fresh object of the method."""
        return self.registry.create(self.method, self.config)

    def once(self, key: object, make: Callable[[], T]) -> T:
        """What ``make`` returns, made on the first call only.

        What it raises fails the check that asked first; later ones are skipped, so that one fault
        is told once.
        """
        if key in self._failed:
            raise self._failed[key]
        if key not in self._made:
            try:
                self._made[key] = make()
            except CheckSkippedError as reason:
                self._failed[key] = reason
                raise
            except Exception:
                self._failed[key] = CheckSkippedError(f"{key} failed in a check before")
                raise
        made: T = self._made[key]
        return made


@contextlib.contextmanager
def watched_global_state() -> Iterator[list[str]]:
    """Afterwards, the list that this gives names what changed: global generators and switches."""
    changed: list[str] = []
    before = _global_state()
    yield changed
    after = _global_state()
    changed += [name for name, value in before.items() if after[name] != value]


def require_untouched(changed: list[str]) -> None:
    """Fail if anything global changed."""
    require(not changed, f"it changed {' and '.join(changed)}; leave what is global as it was")


def _global_state() -> dict[str, Any]:
    kind, keys, position, *rest = np.random.get_state(legacy=True)
    return {
        "torch's global generator": torch.get_rng_state().numpy().tobytes(),
        "numpy's global generator": (kind, np.asarray(keys).tobytes(), position, *rest),
        "Python's global generator": random.getstate(),
        "torch's gradient mode": torch.is_grad_enabled(),
        "torch's default type": torch.get_default_dtype(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's matmul precision": torch.get_float32_matmul_precision(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "cuDNN's switches": (
            torch.backends.cudnn.enabled,
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
        ),
    }
