"""How a detector scores clean models, and what that says of a score. Light: imports no torch."""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Any, Final

import attrs

from backdoorkit.errors import InputError
from backdoorkit.pipeline.keys import content_key

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Calibration", "find_calibration", "read_calibration", "write_calibration"]

_FORMAT: Final = "backdoorkit-calibration-1"
_LARGEST_FILE: Final = 16 << 20
_FOLDER: Final = "calibrations"


@attrs.frozen(kw_only=True)
class Calibration:
    """Scores of one detector on clean models of one architecture: its null distribution."""

    #: name, distribution, version and config
    detector: Mapping[str, Any]
    #: name and config
    architecture: Mapping[str, Any]
    #: number of classes K
    num_classes: int
    #: C, H, W
    image_shape: tuple[int, int, int]
    #: one per clean model
    scores: tuple[float, ...]
    #: clean images that the detector had
    reserve: int
    #: what else there is to know: data, training, seeds or files, versions, date
    provenance: Mapping[str, Any] = attrs.field(factory=dict)

    def p_value(self, score: float) -> float:
        """How often chance alone gives as much: (1 + scores at least as large) / (N + 1)."""
        larger = sum(other >= score for other in self.scores)
        return (1 + larger) / (len(self.scores) + 1)

    def threshold(self, false_alarm_rate: float) -> float:
        """The score above which p is at most ``false_alarm_rate``.

        With fewer than 1 / rate - 1 models no p is that small: then it is the largest clean score,
        and :meth:`reached_rate` tells what that stands for.
        """
        allowed = self._allowed(false_alarm_rate)
        return sorted(self.scores, reverse=True)[max(allowed, 0)]

    def reached_rate(self, false_alarm_rate: float) -> float:
        """The false alarm rate for which :meth:`threshold` stands; above the wanted one where the
        models are too few.
        """
        return (1 + max(self._allowed(false_alarm_rate), 0)) / (len(self.scores) + 1)

    def _allowed(self, rate: float) -> int:
        """Clean scores that may lie at or above a flagged one; -1 where N is too small."""
        # Rounded first: 0.05 * 20 shall be 1 and not a little less.
        most = math.floor(round(rate * (len(self.scores) + 1), 9)) - 1
        return min(most, len(self.scores) - 1)

    @property
    def identity(self) -> dict[str, Any]:
        """What must agree for scores to be comparable."""
        return {
            "detector": dict(self.detector),
            "architecture": dict(self.architecture),
            "num_classes": self.num_classes,
            "image_shape": list(self.image_shape),
        }


def find_calibration(store: Path, identity: Mapping[str, Any]) -> tuple[Path, Calibration] | None:
    """The calibration in the store for just this detector, its options, and this architecture."""
    path = _place(store, identity)
    if not path.is_file():
        return None
    found = read_calibration(path)
    return (path, found) if found.identity == dict(identity) else None


def write_calibration(calibration: Calibration, store: Path, copy: Path | None = None) -> Path:
    """Write it where :func:`find_calibration` looks, and to ``copy``; the latter's path if any."""
    values = {"format": _FORMAT, **attrs.asdict(calibration)}
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    places = [_place(store, calibration.identity)]
    places += [] if copy is None else [copy]
    for path in places:
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(text, encoding="utf-8")
            draft.replace(path)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from None
    return places[-1]


def read_calibration(path: Path) -> Calibration:
    """The calibration in a file of :func:`write_calibration`.

    Raises
    ------
    InputError
        where it cannot be read, is another kind of file, or lacks scores.

    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise InputError(f"{path} is too large for a calibration")
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"calibration {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or values.pop("format", None) != _FORMAT:
        raise InputError(f"{path} is no calibration; make one with 'backdoorkit calibrate'")
    try:
        scores = tuple(float(score) for score in values.pop("scores"))
        shape = tuple(int(side) for side in values.pop("image_shape"))
        made = Calibration(scores=scores, image_shape=shape, **values)  # type: ignore[arg-type]
    except (TypeError, ValueError, KeyError):
        raise InputError(f"calibration {path} is damaged; make it again") from None
    if not scores or any(math.isnan(score) for score in scores):
        raise InputError(f"calibration {path} has no scores; make it again")
    return made


def _place(store: Path, identity: Mapping[str, Any]) -> Path:
    detector, architecture = identity["detector"]["name"], identity["architecture"]["name"]
    name = f"{detector}-{architecture}-{content_key(**identity)[:12]}.json"
    return store / _FOLDER / name
