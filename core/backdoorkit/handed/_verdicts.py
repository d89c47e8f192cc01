"""What detectors found in a run, with how likely that is for a clean model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from backdoorkit.errors import InputError, RunFailedError
from backdoorkit.handed.calibration import find_calibration, read_calibration
from backdoorkit.pipeline.victims import chosen

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from backdoorkit.handed.calibration import Calibration
    from backdoorkit.handed.request import Request
    from backdoorkit.pipeline.plan import Entry
    from backdoorkit.pipeline.recipe import Recipe
    from backdoorkit.pipeline.runner import Run
    from backdoorkit.pipeline.store import Artifact

__all__ = ["Verdict", "check_calibration", "identity_of", "verdicts"]

_TENSORS: Final = "tensors.safetensors"


@attrs.frozen(kw_only=True)
class Verdict:
    """One detector's word on the model."""

    detector: str
    #: higher is more suspicious; None from a detector that does not judge models
    score: float | None
    #: score above which the model is called backdoored
    threshold: float | None
    threshold_source: str
    detected: bool | None
    #: class that the backdoor leads to
    target: int | None
    p_value: float | None
    p_value_source: str
    #: threshold and p-value come from clean models, not from theory
    is_calibrated: bool
    warnings: tuple[str, ...]
    details: Mapping[str, Any]
    #: tensors that the detector stored
    tensors: Path | None
    #: figures by name, with captions
    figures: Mapping[str, tuple[Path, str]]

    def to_json(self) -> dict[str, Any]:
        """Without the details, which are long."""
        kept = ("detector", "score", "threshold", "threshold_source", "detected", "target")
        values = {name: getattr(self, name) for name in (*kept, "p_value", "p_value_source")}
        return {**values, "details": dict(self.details)}


def check_calibration(request: Request, recipe: Recipe) -> None:
    """Look at the calibration that was given before a search of hours begins.

    Raises
    ------
    InputError
        where it cannot be read, or is of another detector or of other options.

    """
    if request.calibration is None:
        return
    calibration = read_calibration(request.calibration)
    for choice in recipe.detectors:
        _is_of(calibration, chosen(choice) or {}, request)


def verdicts(run: Run, request: Request, store: Path) -> Iterator[Verdict]:
    """The verdict of each detector in the order of the recipe.

    Raises
    ------
    RunFailedError
        where a detector failed; the message is its own.

    """
    for entry in run.plan.entries:
        if entry.detect is None:
            continue
        result = run.results[entry.detect.key]
        if result.artifact is None:
            raise RunFailedError(f"{entry.defense} failed: {result.error}")
        yield _verdict(run, entry, result.artifact, request, store)


def identity_of(run: Run, entry: Entry) -> dict[str, Any]:
    """What a calibration must agree in with the verdict of an entry."""
    assert entry.detect is not None
    detector = chosen(entry.detect.choices["method"])
    architecture = chosen(entry.victim.choices["model"])
    data = run.results[entry.victim.inputs["data"].key].artifact
    assert detector is not None
    assert architecture is not None
    assert data is not None
    return {
        "detector": detector,
        "architecture": {key: architecture[key] for key in ("name", "config")},
        "num_classes": len(data.facts["class_names"]),
        "image_shape": list(data.facts["image_shape"]),
    }


def _verdict(run: Run, entry: Entry, artifact: Artifact, request: Request, store: Path) -> Verdict:
    found = artifact.read_json("verdict.json")
    details = dict(artifact.facts["details"])
    score, threshold = found["score"], found["threshold"]
    values: dict[str, Any] = {
        "threshold": threshold,
        "threshold_source": "" if threshold is None else "the detector's own",
        "detected": found["detected"],
        "p_value": details.get("p_value"),
        "p_value_source": "the detector's own theory" if "p_value" in details else "",
        "is_calibrated": False,
        "warnings": (),
    }
    calibrated = _calibration(identity_of(run, entry), request, store)
    if calibrated is not None and score is not None:
        values |= _by_calibration(score, artifact, request, *calibrated)
    target = found["target"]
    if values["detected"] and target is None:
        # Calibrated below the detector's own threshold: it names whom it would suspect first.
        target = details.get("suspect")
    captions = found.get("captions", {})
    return Verdict(
        detector=entry.defense,
        score=score,
        target=target if values["detected"] else None,
        details=details,
        tensors=artifact.file(_TENSORS) if _TENSORS in artifact.files else None,
        figures={name: (artifact.file(f"{name}.png"), text) for name, text in captions.items()},
        **values,
    )


def _calibration(
    identity: Mapping[str, Any], request: Request, store: Path
) -> tuple[str, Calibration, list[str]] | None:
    if request.calibration is None:
        found = find_calibration(store, identity)
        return None if found is None else (str(found[0]), found[1], [])
    calibration = read_calibration(request.calibration)
    theirs, ours = calibration.identity, identity
    if not _is_of(calibration, ours["detector"], request):
        return None
    parts = ("architecture", "num_classes", "image_shape")
    warnings = [
        f"the calibration is of another {part.replace('_', ' ')} ({theirs[part]}), so its p-value "
        "is a rough one"
        for part in parts
        if theirs[part] != ours[part]
    ]
    return str(request.calibration), calibration, warnings


def _is_of(calibration: Calibration, detector: Mapping[str, Any], request: Request) -> bool:
    """Whether it is of this detector, with just its options; of several it may be of another."""
    theirs = calibration.detector
    if theirs["name"] != detector["name"]:
        if len(request.detectors) > 1:
            return False
        raise InputError(
            f"{request.calibration} is of detector {theirs['name']!r}, and "
            f"{detector['name']!r} is asked for; give the calibration of that one"
        )
    given, here = theirs["config"], detector["config"]
    different = [key for key in here if given.get(key) != here[key]]
    if different:
        key = different[0]
        raise InputError(
            f"{request.calibration} was made with {key} = {given.get(key)}, not {here[key]}; its "
            "scores cannot be compared: use the same options for both"
        )
    return True


def _by_calibration(
    score: float,
    artifact: Artifact,
    request: Request,
    source: str,
    calibration: Calibration,
    warnings: list[str],
) -> dict[str, Any]:
    rate, count = request.false_alarm_rate, len(calibration.scores)
    threshold, reached = calibration.threshold(rate), calibration.reached_rate(rate)
    if reached > rate:
        warnings.append(
            f"{count} clean models are too few for a false alarm rate of {rate:g}: the threshold "
            f"is their largest score, which chance exceeds in {100 * reached:.0f} % of clean models"
        )
    reserve = artifact.facts.get("clean_samples", 0)
    if reserve and not 0.5 <= calibration.reserve / reserve <= 2:
        warnings.append(
            f"the calibration was made with {calibration.reserve} images and here are {reserve}; "
            "scores may not compare"
        )
    return {
        "threshold": threshold,
        "threshold_source": f"calibrated, false alarm rate {max(reached, rate):g}",
        "detected": score > threshold,
        "p_value": calibration.p_value(score),
        "p_value_source": f"rank among {count} clean models ({source})",
        "is_calibrated": True,
        "warnings": tuple(warnings),
    }
