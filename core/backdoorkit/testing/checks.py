"""The checks themselves, by kind: used by the suites and by ``backdoorkit plugins check``."""

from __future__ import annotations

import enum
import time
from typing import TYPE_CHECKING, Any, Final

import attrs

from backdoorkit.errors import BackdoorkitError
from backdoorkit.hooks.info import Kind
from backdoorkit.testing import (
    _attacks,
    _datasets,
    _defenders,
    _descriptors,
    _metrics,
    _models,
)
from backdoorkit.testing._subject import CheckFailedError, CheckSkippedError, Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from backdoorkit.hooks.registry import Method, Registry

    Check = Callable[[Subject], None]

__all__ = [
    "CheckFailedError",
    "CheckOutcome",
    "CheckSkippedError",
    "CheckStatus",
    "Subject",
    "checks_for",
    "run_checks",
]

_BY_KIND: Final[Mapping[Kind, tuple[Check, ...]]] = {
    Kind.ATTACK: _attacks.CHECKS,
    Kind.DEFENSE: _defenders.DEFENSE_CHECKS,
    Kind.DETECTOR: _defenders.DETECTOR_CHECKS,
    Kind.ANALYSIS: _defenders.ANALYSIS_CHECKS,
    Kind.METRIC: _metrics.CHECKS,
    Kind.DATASET: _datasets.CHECKS,
    Kind.MODEL: _models.CHECKS,
    Kind.EXECUTOR: (),
    Kind.OBSERVER: (),
}


class CheckStatus(enum.StrEnum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@attrs.frozen(kw_only=True)
class CheckOutcome:
    """One check of one method."""

    check: str
    status: CheckStatus
    #: what is wrong, or why it was skipped; empty where it passed
    message: str = ""
    seconds: float = attrs.field(default=0.0, eq=False)

    @property
    def failed(self) -> bool:
        return self.status is CheckStatus.FAILED

    def __str__(self) -> str:
        line = f"{self.status:<7}  {self.check}"
        return f"{line}: {self.message}" if self.message else line

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "check": self.check,
            "status": self.status.value,
            "message": self.message,
            "seconds": round(self.seconds, 3),
        }


def checks_for(kind: Kind) -> tuple[Check, ...]:
    """All checks of a method of that kind; each takes a :class:`Subject` and raises if it fails."""
    return (*_descriptors.CHECKS, *_BY_KIND[kind])


def run_checks(
    registry: Registry, method: Method, values: Mapping[str, Any] | None = None
) -> Iterator[CheckOutcome]:
    """Carry out all checks of ``method``, one after the other.

    ``values`` are options (or a ``preset``) to run it with; by default the method's own.
    """
    subject = Subject(registry, method, values)
    for check in checks_for(method.kind):
        started = time.perf_counter()
        status, message = _carry_out(check, subject)
        seconds = time.perf_counter() - started
        yield CheckOutcome(check=title(check), status=status, message=message, seconds=seconds)


def title(check: Check) -> str:
    """A check's name in words."""
    return check.__name__.replace("_", " ")


def _carry_out(check: Check, subject: Subject) -> tuple[CheckStatus, str]:
    try:
        check(subject)
    except CheckSkippedError as reason:
        return CheckStatus.SKIPPED, str(reason)
    except (CheckFailedError, BackdoorkitError) as fault:
        return CheckStatus.FAILED, _one_line(fault)
    except Exception as error:
        return CheckStatus.FAILED, f"{type(error).__name__}: {_one_line(error)}"
    return CheckStatus.PASSED, ""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
