"""``backdoorkit repair``: a cleaner copy of a model file."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backdoorkit.cli._context import get_registry
from backdoorkit.cli._handed import (
    copied_report,
    described,
    file_options,
    image_options,
    make_request,
    run_options,
    show,
    warn_of_broken_plugins,
)
from backdoorkit.cli.scan import verdict_line

if TYPE_CHECKING:
    from backdoorkit.handed.repairing import Repair

__all__ = ["repair"]


@click.command(no_args_is_help=True)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--defense", metavar="NAME", required=True, help="How it is repaired.")
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The repaired model (.safetensors); a manifest (.json) is put beside it.",
)
@click.option("--force", is_flag=True, help="Replace files that are there already.")
@file_options
@image_options
@click.option(
    "--hold-out",
    type=click.FloatRange(0, 0.9),
    default=0.0,
    help="Keep this share of the images from the repair, and judge it on them.  [default 0: it is "
    "judged on the images that it used]",
)
@click.option(
    "--detector",
    "detectors",
    metavar="NAME",
    multiple=True,
    help="Reverses triggers, whose success is measured before and after.  [default nc]",
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Put a copy of the HTML report here.",
)
@run_options
@click.pass_context
def repair(context: click.Context, /, model: Path, **options: Any) -> None:
    """Write a cleaner copy of a model file, and say what changed.

    The attacker's trigger is not known here, so its success cannot be measured; the success of
    triggers that a detector reverses from the model is, before and after.

    Example: backdoorkit repair model.pth --data clean-images --defense tsbd -o clean.safetensors
    """
    registry = get_registry(context)
    request = make_request(model, options, detectors=options["detectors"])
    warn_of_broken_plugins(registry)
    from backdoorkit.cli.progress import shown_progress
    from backdoorkit.pipeline.store import Store

    store = Store(options["store"])
    quiet = context.ensure_object(dict).get("quiet", False)
    with shown_progress(registry, quiet=quiet) as progress, contextlib.redirect_stdout(sys.stderr):
        # Heavy: torch and all that.
        from backdoorkit.handed.repairing import repair as carry_out

        made = carry_out(
            request,
            options["defense"],
            options["out"],
            registry,
            store,
            progress,
            force=options["force"],
        )
    report = copied_report(made.report, options["report"])
    _show(made, report, as_json=options["as_json"])


def _show(made: Repair, report: Path, *, as_json: bool) -> None:
    facts = made.to_json() | {"report": str(report)}
    if as_json:
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        lines = list(described(facts))
        lines += [("detector", verdict_line(verdict)) for verdict in made.verdicts]
        lines.append(("defense", made.defense))
        if made.accuracy_before is not None and made.accuracy_after is not None:
            change = _change(made.accuracy_before, made.accuracy_after)
            seen = "held out" if made.is_held_out else "that the repair used"
            lines.append(("accuracy", f"{change}, on {made.judged_on} images {seen}"))
        for trigger in made.triggers:
            of = f"reversed trigger of class {trigger.label}"
            flagged = "" if trigger.flagged else " (the smallest; no class is flagged)"
            lines.append(("success", f"{_change(trigger.before, trigger.after)}, {of}{flagged}"))
        share = f"{100 * made.changed_predictions:.2f} % of the images are taken for another class"
        lines += [("changed", share), ("written", f"{made.out}, {made.manifest}")]
        show(lines)
        if made.triggers:
            click.echo(f"\n{facts['note']}")
    for warning in made.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"report: {report}", err=True)


def _change(before: float, after: float) -> str:
    return f"{100 * before:.2f} % before, {100 * after:.2f} % after"
