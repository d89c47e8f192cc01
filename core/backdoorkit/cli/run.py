"""``backdoorkit run``: a chain of steps, or a recipe file, or a file with steps added."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import click

from backdoorkit.cli._context import get_registry
from backdoorkit.cli._options import ExistingPath
from backdoorkit.cli._overrides import parse_assignment, set_value
from backdoorkit.cli._steps import StepGroup, joined
from backdoorkit.data.options import DataOptions
from backdoorkit.errors import InputError, RunFailedError
from backdoorkit.pipeline.catalog import IN_PROCESS
from backdoorkit.pipeline.recipe import (
    DEFAULT_DATA,
    DEFAULT_MODEL,
    HereText,
    MethodChoice,
    ModelChoice,
    Recipe,
    read_recipe_file,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backdoorkit.cli._steps import ChainStep
    from backdoorkit.hooks.registry import Registry
    from backdoorkit.pipeline.runner import RunResult

__all__ = ["run"]

log = logging.getLogger(__name__)

_DEFAULT_STORE: Final = "backdoorkit-runs"
#: What a table says of the run rather than of the data set or architecture that it names.
_OF_ANY_SOURCE: Final = {
    "data": frozenset(attrs.fields_dict(DataOptions)),
    "model": frozenset(attrs.fields_dict(ModelChoice)) - set(attrs.fields_dict(MethodChoice)),
}


@click.group(
    cls=StepGroup,
    chain=True,
    invoke_without_command=True,
    no_args_is_help=True,
    subcommand_metavar="STEP [STEP OPTIONS] [STEP ...]",
)
@click.option(
    "-f",
    "--file",
    type=ExistingPath(dir_okay=False, path_type=Path),
    help="Recipe (TOML). Options and steps given beside it change and extend it.",
)
@click.option(
    "--scale",
    metavar="NAME",
    help="Carry the recipe out smaller, as its table [scale.NAME] says.  [default full]",
)
@click.option(
    "--data",
    metavar="NAME",
    help="Data set; the file's options of another one then do not count, its sizes do.  "
    "[default digits]",
)
@click.option(
    "--model",
    metavar="NAME",
    help="Architecture; likewise.  [default small-cnn]",
)
@click.option(
    "--victim",
    type=ExistingPath(file_okay=False),
    metavar="FOLDER",
    help="Start from this victim instead of making one; model, attack and seed are its own.",
)
@click.option("--epochs", type=click.IntRange(min=0), help="Passes over the training set.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    multiple=True,
    help="Repeat for several; tables then show mean and spread.  [default 0]",
)
@click.option(
    "--set",
    "assignments",
    metavar="PATH=VALUE",
    multiple=True,
    help="Set any key of the recipe, such as data.reserve_size=100, train.learning_rate=0.05 or "
    "model.weights=FILE. Repeatable.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Processor threads.  [default one per core]"
)
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(min=1),
    help="Steps that run at once, in worker processes of one thread each.  [default 1, in this "
    "process]",
)
@click.option(
    "--executor",
    metavar="NAME",
    help="Where steps run.  [default in-process, or processes where there are several jobs]",
)
@click.option("--address", metavar="ADDRESS", help="Short for --set executor.address=ADDRESS.")
@click.option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N.  [default auto]")
@click.option(
    "--oracle",
    is_flag=True,
    default=None,
    help="Permit methods to choose levels on test attack success; tables then say so.",
)
@click.option(
    "--controls/--no-controls",
    default=None,
    help="Add the clean twin and plain fine-tuning to compare with.  [default: without a recipe "
    "file, where there are several defenses or a detector]",
)
@click.option(
    "--published",
    metavar="NAME",
    multiple=True,
    help="Put a paper's table beside the results; repeatable. 'backdoorkit report "
    "--list-published' lists them.",
)
@click.option(
    "--observer",
    "observers",
    metavar="NAME",
    multiple=True,
    help="Have the run watched, such as by jsonlines; repeatable.",
)
@click.option("--dry-run", is_flag=True, help="Print the resolved recipe as TOML; run nothing.")
@click.option(
    "--plan", is_flag=True, help="Print how many steps there are, and are done; run nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@click.option(
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    default=_DEFAULT_STORE,
    envvar="BACKDOORKIT_STORE",
    help=f"Where results are kept and found again.  [default {_DEFAULT_STORE}]",
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Put a copy of the HTML report here.",
)
@click.option(
    "--keep-victims",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Put a copy of each victim here, to start from with --victim on any machine.",
)
@click.option(
    "--pictures",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Put each attack's contact sheet here: clean, triggered, difference times ten.",
)
def run(**_: Any) -> None:
    """Attack, train, defend, detect and measure.

    Several attacks and defenses make a grid; every table has a row without defense. What is in
    the store already is not done again, so an interrupted run goes on where it was.

    Example: backdoorkit run --epochs 20 badnets --poison-rate 0.05 tsbd
    """


@run.result_callback()
@click.pass_context
def carry_out(context: click.Context, steps: list[ChainStep], /, **options: Any) -> None:
    """After all steps are parsed: make the recipe, then print it or carry it out."""
    registry = get_registry(context)
    recipe = _recipe(registry, steps, options)
    if options["dry_run"]:
        click.echo(recipe.to_toml(), nl=False)
        return
    if options["plan"]:
        click.echo(_planned(recipe, registry, options["store"]))
        return
    for record in registry.plugins:
        if record.error and record.state != "blocked":
            log.warning("plugin %s is %s: %s", record.label, record.state, record.error)
    quiet = context.ensure_object(dict).get("quiet", False)
    result = _run_recipe(recipe, registry, options["store"], quiet=quiet)
    _show(result, recipe, as_json=options["as_json"], report=options["report"])
    _keep(result, victims=options["keep_victims"], pictures=options["pictures"])
    if result.failed:
        raise RunFailedError(
            "some steps failed, as the table says; the others are kept, and the same command "
            "tries only what failed again"
        )


def _planned(recipe: Recipe, registry: Registry, store: Path) -> str:
    """Steps by kind: how many, and how many of them are in the store; nothing is made."""
    from backdoorkit.pipeline.fingerprints import plan_of
    from backdoorkit.pipeline.plan import StepKind
    from backdoorkit.pipeline.store import Store

    plan = plan_of(recipe, registry)
    opened = Store(store) if store.is_dir() else None
    done = [step for step in plan.steps if opened and opened.has(step.kind.value, step.key)]
    lines = [f"{'steps':<12} {'all':>6} {'done':>6}"]
    for kind in StepKind:
        if of_kind := plan.of_kind(kind):
            finished = sum(step.kind is kind for step in done)
            lines.append(f"{kind.value:<12} {len(of_kind):>6} {finished:>6}")
    return "\n".join([*lines, f"{'together':<12} {len(plan.steps):>6} {len(done):>6}"])


def _run_recipe(recipe: Recipe, registry: Registry, store: Path, *, quiet: bool) -> RunResult:
    from backdoorkit.cli.progress import shown_progress
    from backdoorkit.pipeline.store import Store

    opened = Store(store)
    with shown_progress(registry, quiet=quiet) as progress:
        # Heavy: torch and all that.
        from backdoorkit.pipeline.runner import run_recipe

        # Standard output belongs to the results, whatever a method prints.
        with contextlib.redirect_stdout(sys.stderr):
            return run_recipe(recipe, registry, opened, progress=progress)


def _show(result: RunResult, recipe: Recipe, *, as_json: bool, report: Path | None) -> None:
    if as_json:
        facts = {
            "name": recipe.name,
            "directory": str(result.directory),
            "report": str(result.report),
            "failed": result.failed,
            **result.table.to_json(),
        }
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        click.echo(result.table.to_text())
        for figures in recipe.published:
            from backdoorkit.report.comparing import comparison_text

            click.echo(f"\n{comparison_text(result.table.rows, figures)}")
    if report is not None:
        try:
            report.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(result.report, report)
        except OSError as error:
            raise InputError(
                f"the report cannot be written to {report}: {error.strerror}"
            ) from None
    click.echo(f"report: {report or result.report}", err=True)


def _keep(result: RunResult, *, victims: Path | None, pictures: Path | None) -> None:
    """Copies of victims and of their contact sheets, where they are wanted."""
    if victims is not None:
        from backdoorkit.pipeline.portable import copy_victim

        for name, artifact in result.victims.items():
            click.echo(f"victim: {copy_victim(artifact, victims, name)}", err=True)
    if pictures is not None:
        from backdoorkit.report.pictures import write_sheet

        for name, artifact in result.victims.items():
            sheet = write_sheet(artifact.file("samples.safetensors"), pictures, name)
            click.echo(f"picture: {sheet}", err=True)


# -- from the command line to a recipe -------------------------------------------------------------


def _recipe(registry: Registry, steps: Sequence[ChainStep], options: Mapping[str, Any]) -> Recipe:
    file: Path | None = options["file"]
    if file is None and options["scale"] is not None:
        raise InputError("--scale is for a recipe file; give one with -f")
    values = {} if file is None else read_recipe_file(file, options["scale"])
    from_file = set(values)
    for room in _OF_ANY_SOURCE:
        _leave_out_another_s(values, room, options[room])
    shorthands = {
        "victim": None if options["victim"] is None else HereText(options["victim"]),
        "data.name": options["data"],
        "model.name": options["model"],
        "train.epochs": options["epochs"],
        "seeds": list(options["seed"]) or None,
        "device": options["device"],
        "threads": options["threads"],
        "jobs": options["jobs"],
        "oracle": options["oracle"],
    }
    for path, value in shorthands.items():
        if value is not None:
            set_value(values, path, value)
    assignments = [parse_assignment(assignment) for assignment in options["assignments"]]
    _choose_executor(values, options, assignments)
    for path, value in assignments:
        set_value(values, path, value)
    for step in joined(steps):
        _append(values, step)
    _accompany(values, options)
    # Tables that only the command line has made keep the default name.
    for room, name in (("data", DEFAULT_DATA), ("model", DEFAULT_MODEL)):
        if "victim" in values:
            break  # its own names are the default
        if room not in from_file and isinstance(values.get(room), dict):
            values[room].setdefault("name", name)
    return Recipe.from_mapping(values, registry, None if file is None else file.parent)


def _leave_out_another_s(values: dict[str, Any], room: str, name: str | None) -> None:
    """If the command line names another source than the file: what only the file's could take."""
    table = values.get(room)
    if name is not None and isinstance(table, dict) and table.get("name", name) != name:
        kept = _OF_ANY_SOURCE[room]
        values[room] = {key: value for key, value in table.items() if key in kept}


def _choose_executor(
    values: dict[str, Any], options: Mapping[str, Any], assignments: list[tuple[str, Any]]
) -> None:
    """An executor is a name or a table; what the command line says of it goes into either."""
    named, given = options["executor"], values.get("executor")
    before = given.get("name") if isinstance(given, dict) else given
    if named is not None and named != before:
        values["executor"] = named
    elif before == IN_PROCESS and (options["jobs"] or 1) > 1:
        del values["executor"]  # the file's; several jobs have a default of their own
    if options["address"] is not None:
        assignments.append(("executor.address", options["address"]))
    if isinstance(values.get("executor"), str) and any(
        path.startswith("executor.") for path, _ in assignments
    ):
        values["executor"] = {"name": values["executor"]}


def _append(values: dict[str, Any], step: ChainStep) -> None:
    tables = values.setdefault(step.room, [])
    # Anything else is refused with the rest of the recipe's faults.
    if isinstance(tables, list):
        tables.append(copy.copy(step.table))


def _accompany(values: dict[str, Any], options: Mapping[str, Any]) -> None:
    """What stands beside the results, and who watches."""
    wants_controls = options["controls"]
    if wants_controls is None and options["file"] is None and "controls" not in values:
        wants_controls = len(values.get("defenses", ())) > 1 or bool(values.get("detectors"))
    if wants_controls is not None:
        values["controls"] = wants_controls
    before = values.get("published", [])
    if options["published"] and isinstance(before, list):
        values["published"] = list(dict.fromkeys([*before, *options["published"]]))
    for name in options["observers"]:
        _add_observer(values, name)


def _add_observer(values: dict[str, Any], name: str) -> None:
    """Beside those of the file; one that it names already keeps the file's options."""
    tables = values.setdefault("observers", [])
    if isinstance(tables, list) and not any(
        isinstance(table, dict) and table.get("name") == name for table in tables
    ):
        tables.append({"name": name})
