"""``backdoorkit scan``: is this model backdoored?"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backdoorkit.cli._context import get_registry
from backdoorkit.cli._handed import (
    DETECTED,
    copied_report,
    described,
    file_options,
    image_options,
    make_request,
    run_options,
    show,
    warn_of_broken_plugins,
)

if TYPE_CHECKING:
    from backdoorkit.handed._verdicts import Verdict
    from backdoorkit.handed.scanning import Scan

__all__ = ["scan", "verdict_line"]


@click.command(no_args_is_help=True)
@click.argument("model", type=click.Path(path_type=Path))
@file_options
@image_options
@click.option(
    "--detector",
    "detectors",
    metavar="NAME",
    multiple=True,
    help="Repeatable.  [default nc; without images, all that need none]",
)
@click.option(
    "--calibration",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Scores of clean models, from 'backdoorkit calibrate'.  [default: one in the store for "
    "this architecture and detector, if there is any]",
)
@click.option(
    "--false-alarm-rate",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    help="Share of clean models that a calibrated threshold may flag.  [default 0.05]",
)
@click.option(
    "--fail-on-detect", is_flag=True, help=f"End with {DETECTED} if the model is backdoored."
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Put a copy of the HTML report here.",
)
@run_options
@click.pass_context
def scan(context: click.Context, /, model: Path, **options: Any) -> None:
    """Look for a backdoor in a model file, with a few clean images.

    MODEL is a .safetensors file, or what torch.save writes; nothing in it is executed. No record
    of an attack is needed.

    Example: backdoorkit scan model.pth --data clean-images
    """
    registry = get_registry(context)
    request = make_request(
        model,
        options,
        detectors=options["detectors"],
        calibration=options["calibration"],
        false_alarm_rate=options["false_alarm_rate"],
    )
    warn_of_broken_plugins(registry)
    from backdoorkit.cli.progress import shown_progress
    from backdoorkit.pipeline.store import Store

    store = Store(options["store"])
    quiet = context.ensure_object(dict).get("quiet", False)
    with shown_progress(registry, quiet=quiet) as progress, contextlib.redirect_stdout(sys.stderr):
        # Heavy: torch and all that.
        from backdoorkit.handed.scanning import scan as carry_out

        found = carry_out(request, registry, store, progress)
    report = copied_report(found.report, options["report"])
    _show(found, report, as_json=options["as_json"])
    if found.verdict == "backdoored" and options["fail_on_detect"]:
        context.exit(DETECTED)


def verdict_line(verdict: Verdict) -> str:
    """One detector's word."""
    if verdict.score is None:
        return f"{verdict.detector}: gives no score of a model"
    text = f"{verdict.detector}: score {verdict.score:.3f}"
    if verdict.threshold is not None:
        text += f", threshold {verdict.threshold:.3f} ({verdict.threshold_source})"
    if verdict.p_value is not None:
        text += f", p-value {verdict.p_value:.4f} ({verdict.p_value_source})"
    return text


def _show(found: Scan, report: Path, *, as_json: bool) -> None:
    if as_json:
        facts = found.to_json() | {"report": str(report)}
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        lines = list(described(found.to_json()))
        lines += [("detector", verdict_line(verdict)) for verdict in found.verdicts]
        target = "" if found.target is None else f", target label {found.target}"
        word = found.verdict.upper() if found.verdict == "backdoored" else found.verdict
        doubt = " (doubtful: see the warning)" if found.prepared.warnings else ""
        lines.append(("verdict", word + target + doubt))
        show(lines)
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"report: {report}", err=True)
