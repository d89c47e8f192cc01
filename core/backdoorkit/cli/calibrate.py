"""``backdoorkit calibrate``: how a detector scores clean models."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from backdoorkit.cli._context import get_registry
from backdoorkit.cli._handed import (
    adjusting,
    file_options,
    image_options,
    make_request,
    run_options,
    show,
    warn_of_broken_plugins,
)
from backdoorkit.cli._options import ExistingPath
from backdoorkit.handed.request import CalibrationRequest
from backdoorkit.pipeline.recipe import read_recipe_file

if TYPE_CHECKING:
    from backdoorkit.handed.calibration import Calibration

__all__ = ["calibrate"]


@click.command()
@click.argument("models", nargs=-1, type=click.Path(path_type=Path))
@click.option("--detector", metavar="NAME", help="Whose score is calibrated.  [default nc]")
@click.option(
    "-n",
    "--count",
    type=click.IntRange(min=2),
    default=20,
    help="Clean models to train, where no MODELS are given.  [default 20]",
)
@click.option("--epochs", type=click.IntRange(min=0), help="Passes over the training set.")
@click.option(
    "-f",
    "--file",
    type=ExistingPath(dir_okay=False, path_type=Path),
    help="Recipe whose data, model, train and detectors are used; its attacks are left out.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the calibration here too, beside the store.",
)
@file_options
@image_options
@run_options
@click.pass_context
def calibrate(context: click.Context, /, models: tuple[Path, ...], **options: Any) -> None:
    """Score clean models: the null distribution of a detector.

    MODELS are files of clean models of one architecture, judged on the images of --data. Without
    them models are trained on the data set of --data, one per seed. 'scan' finds the result in the
    store by architecture, detector and options.

    Example: backdoorkit calibrate --arch small-cnn --data digits --count 20 --epochs 20
    """
    registry = get_registry(context)
    file: Path | None = options["file"]
    request = CalibrationRequest(
        architecture=options["architecture"],
        data=options["data"],
        files=models,
        models=options["count"],
        epochs=options["epochs"],
        detector=options["detector"],
        seed=options["seed"],
        device=options["device"],
        threads=options["threads"],
        recipe={} if file is None else read_recipe_file(file),
        recipe_folder=None if file is None else file.parent,
        request=_without_changes(models, options),
        adjust=adjusting(options["assignments"]),
    )
    warn_of_broken_plugins(registry)
    from backdoorkit.cli.progress import shown_progress
    from backdoorkit.pipeline.store import Store

    store = Store(options["store"])
    quiet = context.ensure_object(dict).get("quiet", False)
    with shown_progress(registry, quiet=quiet) as progress, contextlib.redirect_stdout(sys.stderr):
        # Heavy: torch and all that.
        from backdoorkit.handed.calibrating import calibrate as carry_out

        made, path = carry_out(request, registry, store, progress, options["out"])
    _show(made, path, as_json=options["as_json"])


def _without_changes(models: tuple[Path, ...], options: dict[str, Any]) -> Any:
    """How files are read; what ``--set`` says is for the whole recipe."""
    if not models:
        return None
    return make_request(models[0], {**options, "assignments": ()})


def _show(made: Calibration, path: Path, *, as_json: bool) -> None:
    if as_json:
        facts = {**attrs.asdict(made), "file": str(path)}
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    ordered = sorted(made.scores)
    rate = max(0.05, made.reached_rate(0.05))
    show(
        [
            ("detector", made.detector["name"]),
            ("architecture", f"{made.architecture['name']}, {made.num_classes} classes"),
            ("clean models", str(len(ordered))),
            ("scores", ", ".join(f"{score:.3f}" for score in ordered)),
            ("threshold", f"{made.threshold(0.05):.3f} at a false alarm rate of {rate:.3f}"),
            ("written", str(path)),
        ]
    )
