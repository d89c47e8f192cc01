"""One report of one run or several: everything that its formats show, put together once."""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any

import attrs

import backdoorkit
from backdoorkit.pipeline.controls import FINE_TUNING, defense_name
from backdoorkit.pipeline.grids import footnotes
from backdoorkit.pipeline.results import NO_DEFENSE
from backdoorkit.report.comparing import compare
from backdoorkit.report.merging import merged, run_names
from backdoorkit.report.sections import make_sections

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backdoorkit.hooks.published import PublishedFigures
    from backdoorkit.pipeline.results import Table
    from backdoorkit.report.comparing import Comparison
    from backdoorkit.report.runs import StoredRun
    from backdoorkit.report.sections import Section

__all__ = ["Report", "make_report"]


@attrs.frozen(kw_only=True)
class Report:
    """What is reported, and how it is written."""

    title: str
    runs: tuple[StoredRun, ...]
    #: what tells the runs apart, in their order
    run_names: tuple[str, ...]
    table: Table
    sections: tuple[Section, ...]
    comparisons: tuple[Comparison, ...]
    #: runs that have not finished
    warnings: tuple[str, ...]
    #: what a reader must know of the numbers
    notes: tuple[str, ...]

    def to_html(self) -> str:
        """One file that needs no other and no network."""
        from backdoorkit.report.html import render_report

        return render_report(self)

    def to_markdown(self, names: Sequence[str] = (), *, seeds: bool = False) -> str:
        """The sections called ``names``, or all, and every note."""
        from backdoorkit.report.formats import to_markdown

        notes = (*self.warnings, *self.notes)
        return to_markdown(self.title, self.chosen(names), notes, seeds=seeds)

    def to_latex(self, names: Sequence[str] = (), *, seeds: bool = False) -> str:
        """The sections called ``names``, or all."""
        from backdoorkit.report.formats import to_latex

        notes = (*self.warnings, *self.notes)
        return to_latex(self.title, self.chosen(names), notes, seeds=seeds)

    def to_csv(self, names: Sequence[str] = (), *, seeds: bool = False) -> str:
        """The first of the sections called ``names``, or the first of all."""
        from backdoorkit.report.formats import to_csv

        chosen = self.chosen(names)
        return to_csv(chosen[0], seeds=seeds) if chosen else ""

    def to_json(self) -> str:
        """Every number, unrounded; the keys are part of the public interface."""
        values = {
            "title": self.title,
            "backdoorkit": backdoorkit.__version__,
            "runs": [_run(name, run) for name, run in zip(self.run_names, self.runs, strict=True)],
            **self.table.to_json(),
            "published": [_published(comparison) for comparison in self.comparisons],
            "notes": list(self.notes),
        }
        for index, row in enumerate(values["rows"]):
            row["run"] = self.table.rows[index].run
            row["published"] = {
                comparison.name: dict(comparison.cells[index])
                for comparison in self.comparisons
                if index in comparison.cells
            }
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    def chosen(self, names: Sequence[str]) -> list[Section]:
        """Sections by name, in the report's order."""
        return [section for section in self.sections if not names or section.name in names]


def make_report(
    runs: Sequence[StoredRun], published: Sequence[PublishedFigures] = (), title: str = ""
) -> Report:
    """Put one run, or several as one table, beside published figures.

    Raises :class:`InputError` where the runs contradict each other.
    """
    table, differing = merged(runs)
    comparisons = tuple(compare(table.rows, figures) for figures in published)
    names = run_names(runs)
    labelled = zip(names, runs, strict=True)
    warnings = [
        f"{name}: {text}" if len(runs) > 1 else text
        for name, run in labelled
        for text in run.warnings
    ]
    notes = [
        *footnotes(table),
        *_smaller_control(table),
        *differing,
        *(note for comparison in comparisons for note in comparison.notes),
    ]
    return Report(
        title=title or " + ".join(names),
        runs=tuple(runs),
        run_names=tuple(names),
        table=table,
        sections=tuple(make_sections(table, comparisons)),
        comparisons=comparisons,
        warnings=tuple(warnings),
        notes=tuple(dict.fromkeys(notes)),
    )


def _smaller_control(table: Table) -> Iterator[str]:
    """Where fine-tuning, the control, was given less than what it is compared with."""
    seen: dict[str, float] = {}
    for row in table.rows:
        samples = [cell.cost.samples_seen for cell in row.cells if cell.error is None]
        if samples and row.defense != NO_DEFENSE:
            name = defense_name(row)
            seen[name] = max(seen.get(name, 0.0), statistics.fmean(samples))
    control = seen.get(FINE_TUNING)
    if control is None:
        return
    more = [f"{name} ({count:,.0f})" for name, count in seen.items() if count > control]
    if more:
        yield (
            f"control with less: {FINE_TUNING} saw {control:,.0f} samples, fewer than "
            f"{', '.join(more)}."
        )


def _run(name: str, run: StoredRun) -> dict[str, Any]:
    keys = ("backdoorkit", "command", "started", "finished", "device", "seeds", "recipe")
    return {
        "name": name,
        "directory": str(run.directory),
        "complete": not run.warnings,
        **{key: run.record.get(key) for key in keys},
    }


def _published(comparison: Comparison) -> dict[str, Any]:
    figures = comparison.figures
    return {
        "name": figures.name,
        "source": figures.source,
        "setting": figures.setting,
        "corrections": list(figures.corrections),
    }
