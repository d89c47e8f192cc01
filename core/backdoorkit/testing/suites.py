"""Test classes that a plugin's tests derive from; they need pytest.

None of them begins with ``Test``, so that importing them collects nothing.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import pytest

from backdoorkit.hooks.info import Kind
from backdoorkit.hooks.registry import load_registry
from backdoorkit.testing.checks import CheckSkippedError, Subject, checks_for, title

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backdoorkit.hooks.registry import Registry
    from backdoorkit.testing.checks import Check

F = TypeVar("F", bound="Callable[..., object]")

__all__ = [
    "AnalysisSuite",
    "AttackSuite",
    "DatasetSuite",
    "DefenseSuite",
    "DetectorSuite",
    "MetricSuite",
    "ModelSuite",
]


@functools.cache
def _installed() -> Registry:
    return load_registry()


class _Suite:
    """Runs the checks of a kind on one method."""

    kind: ClassVar[Kind]
    #: name of the method
    method: ClassVar[str]
    #: options that make it run in seconds; the method's defaults otherwise
    config: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def registry(cls) -> Registry:
        """Where the method is found; everything that is installed, unless overridden."""
        return _installed()

    @classmethod
    def subject(cls) -> Subject:
        """The method under check, one for all tests of the class."""
        made: Subject | None = cls.__dict__.get("_subject")
        if made is None:
            registry = cls.registry()
            made = Subject(registry, registry.find(cls.method, cls.kind), cls.config)
            cls._subject = made  # type: ignore[attr-defined]
        return made

    def run(self, check: Check) -> None:
        """Carry out one check as a test."""
        try:
            check(self.subject())
        except CheckSkippedError as reason:
            pytest.skip(str(reason))


def _contract(kind: Kind) -> Callable[[F], F]:
    def one_test_per_check(test: F) -> F:
        marked: F = pytest.mark.parametrize("check", checks_for(kind), ids=title)(test)
        return marked

    return one_test_per_check


class AttackSuite(_Suite):
    """Checks of an attack."""

    kind = Kind.ATTACK

    @_contract(Kind.ATTACK)
    def test_contract(self, check: Check) -> None:
        self.run(check)


class DefenseSuite(_Suite):
    """Checks of a defense."""

    kind = Kind.DEFENSE

    @_contract(Kind.DEFENSE)
    def test_contract(self, check: Check) -> None:
        self.run(check)


class DetectorSuite(_Suite):
    """Checks of a detector."""

    kind = Kind.DETECTOR

    @_contract(Kind.DETECTOR)
    def test_contract(self, check: Check) -> None:
        self.run(check)


class AnalysisSuite(_Suite):
    """Checks of an analysis."""

    kind = Kind.ANALYSIS

    @_contract(Kind.ANALYSIS)
    def test_contract(self, check: Check) -> None:
        self.run(check)


class MetricSuite(_Suite):
    """Checks of a metric."""

    kind = Kind.METRIC

    @_contract(Kind.METRIC)
    def test_contract(self, check: Check) -> None:
        self.run(check)


class DatasetSuite(_Suite):
    """Checks of a data set."""

    kind = Kind.DATASET

    @_contract(Kind.DATASET)
    def test_contract(self, check: Check) -> None:
        self.run(check)


class ModelSuite(_Suite):
    """Checks of an architecture."""

    kind = Kind.MODEL

    @_contract(Kind.MODEL)
    def test_contract(self, check: Check) -> None:
        self.run(check)
