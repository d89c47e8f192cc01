"""``backdoorkit report``: runs of a store as one table, in several formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from backdoorkit.cli._context import get_registry
from backdoorkit.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backdoorkit.hooks.published import PublishedFigures
    from backdoorkit.hooks.registry import Registry
    from backdoorkit.report.making import Report
    from backdoorkit.report.runs import StoredRun

__all__ = ["report"]

_DEFAULT_STORE: Final = "backdoorkit-runs"
_FORMATS: Final = ("html", "md", "csv", "latex", "json")
_BY_SUFFIX: Final = {
    **{".html": "html", ".htm": "html", ".md": "md", ".csv": "csv", ".tex": "latex"},
    ".json": "json",
}
_SECTIONS: Final = ("results", "averages", "verdicts", "ratings", "analyses", "costs")


@click.command(no_args_is_help=True)
@click.argument("runs", nargs=-1, metavar="RUN...")
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to this file.  [default: HTML replaces the run's own report, all else is printed]",
)
@click.option(
    "--format",
    "wanted",
    type=click.Choice(_FORMATS),
    help="[default: what the file's name says, else html]",
)
@click.option(
    "--published",
    metavar="NAME",
    multiple=True,
    help="Put a paper's table beside the results; repeatable, added to what the recipes name.",
)
@click.option("--list-published", is_flag=True, help="List the papers' tables and end.")
@click.option("--seeds", is_flag=True, help="Show every seed below its mean (md, csv, latex).")
@click.option(
    "--section",
    "sections",
    type=click.Choice(_SECTIONS),
    multiple=True,
    help="Only this section (md, csv, latex); repeatable.  [default: all; of CSV the first]",
)
@click.option("--title", help="Heading.  [default: the runs' names]")
@click.option("--force", is_flag=True, help="Replace a file that is there already.")
@click.option(
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    default=_DEFAULT_STORE,
    envvar="BACKDOORKIT_STORE",
    help=f"Where runs are found by name.  [default {_DEFAULT_STORE}]",
)
@click.pass_context
def report(context: click.Context, /, runs: tuple[str, ...], **options: Any) -> None:
    """Show one run, or several as one table, beside the figures of papers.

    RUN is the folder of a run, its name below STORE/runs, or the name of its recipe or recipe file.
    A run that has not finished is shown as far as it came.

    Example: backdoorkit report quickstart --format md --published tsbd-table1
    """
    registry = get_registry(context)
    if options["list_published"]:
        _list_published(registry)
        return
    if not runs:
        raise click.UsageError("Missing argument 'RUN...'.")
    wanted = _format(options["wanted"], options["out"])
    out = _destination(options["out"], force=options["force"])
    from backdoorkit.report.making import make_report
    from backdoorkit.report.runs import find_run, read_run

    found = [read_run(find_run(text, options["store"])) for text in runs]
    figures = _published(registry, found, options["published"])
    made = make_report(found, figures, options["title"] or "")
    for warning in made.warnings:
        click.echo(f"warning: {warning}", err=True)
    text = _rendered(made, wanted, options["sections"], seeds=options["seeds"])
    if out is None and wanted == "html":
        out = _own_report(found)
    _write(text, out)


def _format(wanted: str | None, out: Path | None) -> str:
    if wanted is not None or out is None:
        return wanted or "html"
    if out.suffix.lower() not in _BY_SUFFIX:
        known = ", ".join(_BY_SUFFIX)
        raise InputError(f"the name {out.name} tells no format ({known}); say it with --format")
    return _BY_SUFFIX[out.suffix.lower()]


def _destination(out: Path | None, *, force: bool) -> Path | None:
    """Refuse what cannot be written before any work is done."""
    if out is not None and out.exists() and not force:
        raise InputError(f"{out} is there already; replace it with --force")
    if out is not None and not out.absolute().parent.is_dir():
        raise InputError(f"there is no folder {out.absolute().parent} to write {out.name} to")
    return out


def _own_report(runs: Sequence[StoredRun]) -> Path:
    if len(runs) > 1:
        raise InputError("say with -o where the HTML report of several runs is to be written")
    return runs[0].directory / "report.html"


def _published(
    registry: Registry, runs: Sequence[StoredRun], names: Sequence[str]
) -> list[PublishedFigures]:
    """Those asked for; those that the recipes name, where they are still installed."""
    from backdoorkit.hooks.published import read_published

    asked = dict.fromkeys(names)
    for run in runs:
        recipe = run.record.get("recipe")
        named = recipe.get("published", []) if isinstance(recipe, dict) else []
        for name in named if isinstance(named, list) else []:
            try:
                asked.setdefault(registry.find_published(str(name)).name)
            except UnknownNameError as error:
                click.echo(f"warning: {error}", err=True)
    return [read_published(registry.find_published(name).table) for name in asked]


def _rendered(made: Report, wanted: str, sections: Sequence[str], *, seeds: bool) -> str:
    if wanted in ("html", "json"):
        if sections:
            raise InputError(f"--section is for md, csv and latex; {wanted} always holds all")
        return made.to_html() if wanted == "html" else made.to_json()
    if sections and not made.chosen(sections):
        known = ", ".join(dict.fromkeys(section.name for section in made.sections)) or "none"
        raise InputError(f"these runs have no section {', '.join(sections)}; they have: {known}")
    write = {"md": made.to_markdown, "csv": made.to_csv, "latex": made.to_latex}[wanted]
    return write(sections, seeds=seeds)


def _write(text: str, out: Path | None) -> None:
    if out is None:
        click.echo(text, nl=False)
        return
    from backdoorkit.pipeline.record import write_whole

    try:
        write_whole(out, text)
    except OSError as error:
        raise InputError(f"the report cannot be written to {out}: {error.strerror}") from None
    click.echo(f"report: {out}", err=True)


def _list_published(registry: Registry) -> None:
    from backdoorkit.hooks.published import read_published

    for published in registry.published_tables():
        figures = read_published(published.table)
        click.echo(f"{published.name}  (plugin {published.plugin} {published.version})")
        columns = ", ".join(figures.columns)
        rows = sum(map(len, figures.figures.values()))
        for text in (figures.source, figures.setting, f"{rows} rows: {columns}"):
            click.echo(f"    {text}")
