"""``scan``: one verdict on a model file. Imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from backdoorkit.handed._preparing import chosen_detectors, prepare
from backdoorkit.handed._report import write_scan_report
from backdoorkit.handed._verdicts import check_calibration, verdicts
from backdoorkit.pipeline.recipe import Recipe
from backdoorkit.pipeline.runner import run_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from backdoorkit.context import Progress
    from backdoorkit.handed._preparing import Prepared
    from backdoorkit.handed._verdicts import Verdict
    from backdoorkit.handed.request import Request
    from backdoorkit.hooks.registry import Registry
    from backdoorkit.pipeline.store import Store

__all__ = ["Scan", "scan"]


@attrs.frozen(kw_only=True)
class Scan:
    """What a scan found."""

    prepared: Prepared
    verdicts: tuple[Verdict, ...]
    report: Path

    #: share of clean models that a verdict may be wrong about
    false_alarm_rate: float

    @property
    def verdict(self) -> str:
        """``backdoored``, ``suspicious``, ``not flagged`` or ``undecided``.

        Suspicious is what is above a detector's own threshold, but by its own theory not rare
        enough among clean models.
        """
        said = [verdict for verdict in self.verdicts if verdict.detected is not None]
        flagged = [verdict for verdict in said if verdict.detected]
        if any(v.p_value is None or v.p_value <= self.false_alarm_rate for v in flagged):
            return "backdoored"
        if any(verdict.is_calibrated for verdict in flagged):
            return "backdoored"
        if flagged:
            return "suspicious"
        return "not flagged" if said else "undecided"

    @property
    def target(self) -> int | None:
        """Class that the backdoor leads to, by the first detector that found one."""
        found = (v.target for v in self.verdicts if v.detected and v.target is not None)
        return next(found, None)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the verdict doubtful."""
        found = [*self.prepared.warnings, *(w for v in self.verdicts for w in v.warnings)]
        if self.verdict == "suspicious":
            p = min(v.p_value for v in self.verdicts if v.detected and v.p_value is not None)
            found.append(
                f"chance alone is thought to give as much in {100 * p:.0f} % of clean models; "
                "calibrate the detector on clean models of this sort, or give it a larger budget"
            )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Plain values; the keys are part of the public interface."""
        return {
            **facts(self.prepared),
            "verdict": self.verdict,
            "target": self.target,
            "detectors": [verdict.to_json() for verdict in self.verdicts],
            "warnings": list(self.warnings),
            "report": str(self.report),
        }


def scan(request: Request, registry: Registry, store: Store, progress: Progress) -> Scan:
    """Look for a backdoor in a model file.

    Raises
    ------
    InputError
        where model, images or calibration cannot be used.
    RunFailedError
        where a detector failed.

    """
    detectors = chosen_detectors(request, registry, has_images=request.data is not None)
    request = attrs.evolve(request, detectors=detectors)
    prepared = prepare(request, registry, store, "scan")
    values = dict(prepared.recipe) | {"detectors": [{"name": name} for name in detectors]}
    request.adjust(values)
    recipe = Recipe.from_mapping(values, registry)
    check_calibration(request, recipe)
    result = run_recipe(recipe, registry, store, progress=progress)
    found = tuple(verdicts(result.run, request, store.root))
    made = Scan(
        prepared=prepared,
        verdicts=found,
        report=result.directory / "scan.html",
        false_alarm_rate=request.false_alarm_rate,
    )
    write_scan_report(made, recipe)
    return made


def facts(prepared: Prepared) -> dict[str, Any]:
    """What model and images are, for JSON."""
    model = prepared.model
    return {
        "model": {
            "file": str(model.path),
            "architecture": dict(model.architecture),
            "told_from_weights": model.is_told,
            "num_classes": model.num_classes,
            "image_shape": list(prepared.image_shape),
            "normalization": prepared.normalization,
            "normalization_source": prepared.normalization_source,
        },
        "images": {
            "source": prepared.images.source,
            "count": prepared.count,
            "labelled": prepared.images.are_labelled,
            "accuracy": prepared.accuracy,
            "accuracy_by_normalization": dict(prepared.accuracies),
        },
    }
