"""``calibrate``: how a detector scores clean models. Imports torch."""

from __future__ import annotations

import copy
import datetime
from typing import TYPE_CHECKING, Any

import attrs
import torch

import backdoorkit
from backdoorkit.errors import ConfigError, InputError, Issue, RunFailedError
from backdoorkit.handed._preparing import USUAL_DETECTOR, prepare
from backdoorkit.handed._verdicts import identity_of
from backdoorkit.handed.calibration import Calibration, write_calibration
from backdoorkit.pipeline.recipe import DEFAULT_DATA, DEFAULT_MODEL, NO_ATTACK, Recipe
from backdoorkit.pipeline.runner import run_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from backdoorkit.context import Progress
    from backdoorkit.handed.request import CalibrationRequest
    from backdoorkit.hooks.registry import Registry
    from backdoorkit.pipeline.runner import Run
    from backdoorkit.pipeline.store import Store

__all__ = ["calibrate"]


def calibrate(
    request: CalibrationRequest,
    registry: Registry,
    store: Store,
    progress: Progress,
    out: Path | None = None,
) -> tuple[Calibration, Path]:
    """Score clean models and write the calibration into the store, and to ``out`` if given.

    Raises
    ------
    InputError
        where recipe, models or images cannot be used.
    RunFailedError
        where a model could not be trained or judged; the others are kept, and a second call goes
        on.

    """
    values = _from_files(request, registry, store) if request.files else _trained(request)
    request.adjust(values)
    recipe = Recipe.from_mapping(values, registry, request.recipe_folder)
    _check(recipe)
    run = run_recipe(recipe, registry, store, progress=progress).run
    made = _calibration(run, recipe)
    return made, write_calibration(made, store.root, out)


def _trained(request: CalibrationRequest) -> dict[str, Any]:
    """A recipe that trains the models, one per seed."""
    values = copy.deepcopy(request.recipe)
    for key in ("attacks", "defenses", "analyses"):
        values.pop(key, None)
    values["name"] = "calibrate"
    values["seeds"] = list(range(request.seed, request.seed + request.models))
    values["attacks"], values["metrics"] = [{"name": NO_ATTACK}], []
    data, model = values.setdefault("data", {}), values.setdefault("model", {})
    if not isinstance(data, dict) or not isinstance(model, dict):
        raise ConfigError(
            [Issue("data, model", "must be one table each: a calibration is of one architecture")]
        )
    if request.data is not None:
        data["name"] = request.data
    if request.architecture is not None and ":" in request.architecture:
        model.update(name="callable", target=request.architecture)
    elif request.architecture is not None:
        model["name"] = request.architecture
    data.setdefault("name", DEFAULT_DATA)
    model.setdefault("name", DEFAULT_MODEL)
    if request.epochs is not None:
        values.setdefault("train", {})["epochs"] = request.epochs
    return _with_rest(values, request)


def _from_files(request: CalibrationRequest, registry: Registry, store: Store) -> dict[str, Any]:
    """A recipe that imports the models, all on the same images."""
    if request.request is None or request.data is None:
        raise InputError("clean models from files are judged on images; give --data")
    recipes = []
    for file in request.files:
        prepared = prepare(attrs.evolve(request.request, model=file), registry, store, "calibrate")
        recipes.append(dict(prepared.recipe))
    values = recipes[0]
    values["name"] = "calibrate"
    # Labels that a model gave are its own; the images are the same for all.
    values["model"] = [recipe["model"] for recipe in recipes]
    return _with_rest(values, request)


def _with_rest(values: dict[str, Any], request: CalibrationRequest) -> dict[str, Any]:
    if request.detector is not None or not values.get("detectors"):
        values["detectors"] = [{"name": request.detector or USUAL_DETECTOR}]
    values["device"] = request.device
    if request.threads is not None:
        values["threads"] = request.threads
    return values


def _check(recipe: Recipe) -> None:
    if len(recipe.detectors) != 1:
        raise InputError(
            f"a calibration is of one detector, and the recipe has {len(recipe.detectors)}"
        )
    if len(recipe.seeds) * len(recipe.models) < 2:
        raise InputError("one clean model has no distribution; take at least two, better twenty")


def _calibration(run: Run, recipe: Recipe) -> Calibration:
    entries = [entry for entry in run.plan.entries if entry.detect is not None]
    scores = []
    for entry in entries:
        assert entry.detect is not None
        result = run.results[entry.detect.key]
        if result.artifact is None:
            raise RunFailedError(
                f"{entry.defense} failed on {entry.model}, seed {entry.seed}: {result.error}; the "
                "models are kept, and the same command goes on with them"
            )
        score = result.artifact.read_json("verdict.json")["score"]
        if score is None:
            raise InputError(f"{entry.defense} gives no score of a model; choose another detector")
        scores.append(float(score))
        reserve = int(result.artifact.facts["clean_samples"])
    identities = [identity_of(run, entry) for entry in entries]
    if any(identity != identities[0] for identity in identities):
        raise InputError("the models are not of one architecture; calibrate each by itself")
    identity = identities[0]
    return Calibration(
        detector=identity["detector"],
        architecture=identity["architecture"],
        num_classes=identity["num_classes"],
        image_shape=tuple(identity["image_shape"]),
        scores=tuple(scores),
        reserve=reserve,
        provenance={
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "backdoorkit": backdoorkit.__version__,
            "torch": torch.__version__,
            "device": run.device,
            "recipe": recipe.to_mapping(),
        },
    )
