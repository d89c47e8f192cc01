"""One self-contained HTML file: no script, no network, every string escaped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoorkit.pipeline.costs import costs_grid
from backdoorkit.pipeline.grids import findings_grids, footnotes, main_grid, percent, ratings_grids
from backdoorkit.pipeline.results import NO_DEFENSE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from backdoorkit.pipeline.plan import Step
    from backdoorkit.pipeline.results import Row, Table
    from backdoorkit.pipeline.runner import Run

__all__ = ["render_report"]


def render_report(run: Run, table: Table, record: dict[str, Any]) -> str:
    """The report of a finished run."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("backdoorkit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    header, body = main_grid(table)
    return environment.get_template("report.html.j2").render(
        name=run.recipe.name,
        record=record,
        header=header,
        body=[(cells, _class(row)) for cells, row in zip(body, table.rows, strict=True)],
        footnotes=footnotes(table),
        detections=table.detections,
        ratings=ratings_grids(table),
        detection_figures=list(_detection_figures(table)),
        analyses=list(_analyses(table)),
        scatter=_scatter(table),
        attacks=list(_attacks(run)),
        costs=costs_grid(table.attacks) if table.attacks else None,
        rules=_rules(table),
        recipe=run.recipe.to_toml(),
        percent=percent,
    )


def _class(row: Row) -> str:
    return "baseline" if row.defense == NO_DEFENSE else ""


def _rules(table: Table) -> dict[str, str]:
    """How each column was counted, from the first cell that has it."""
    rules: dict[str, str] = {}
    for row in table.rows:
        for cell in row.cells:
            for column, value in cell.metrics.items():
                if value.get("rule"):
                    rules.setdefault(column, value["rule"])
    return rules


def _scatter(table: Table) -> str | None:
    from backdoorkit.report.pictures import scatter

    points = [
        (row.attack, row.defense, asr, acc)
        for row in table.rows
        if (asr := row.mean("ASR")) is not None and (acc := row.mean("ACC")) is not None
    ]
    return scatter(points) if points else None


def _detection_figures(table: Table) -> Iterator[dict[str, str]]:
    from backdoorkit.report.pictures import png_file

    for detection in table.detections:
        for name, path in detection.figures.items():
            title = f"{detection.detector}, {detection.attack}, seed {detection.seed}"
            yield {
                "picture": png_file(Path(path)),
                "title": f"{title}: {name.replace('-', ' ')}",
                "caption": detection.captions[name],
            }


def _analyses(table: Table) -> Iterator[dict[str, Any]]:
    """Every analysis that was carried out: its numbers, and its figures with their captions."""
    from backdoorkit.report.pictures import png_file

    for header, body in findings_grids(table):
        analysis = body[0][header.index("analysis")]
        figures = [
            {
                "picture": png_file(Path(path)),
                "title": f"{finding.attack}, seed {finding.seed}: {name.replace('-', ' ')}",
                "caption": finding.captions[name],
            }
            for finding in table.findings
            if finding.analysis == analysis
            for name, path in finding.figures.items()
        ]
        yield {"title": analysis, "header": header, "body": body, "figures": figures}


def _attacks(run: Run) -> Iterator[dict[str, Any]]:
    """One victim per attack: its trigger on a few test images, and how its training went."""
    from backdoorkit.report.pictures import contact_sheet, curves, trigger_picture

    shown: set[tuple[str, ...]] = set()
    for entry in run.plan.entries:
        names = (entry.data, entry.model, entry.attack)
        artifact = run.results[entry.victim.key].artifact
        if names in shown or artifact is None:
            continue
        shown.add(names)
        history = artifact.facts.get("training", {}).get("history", [])
        samples = artifact.file("samples.safetensors")
        sheet = contact_sheet(samples)
        yield {
            "title": f"{entry.attack} on {entry.data}, {entry.model}",
            "trigger": trigger_picture(samples),
            "sheet": sheet.uri,
            "rows": sheet.rows,
            "curves": curves(history) if history else None,
            "facts": _victim_facts(run, entry.victim),
        }


def _victim_facts(run: Run, victim: Step) -> list[tuple[str, str]]:
    data = run.results[victim.inputs["data"].key].artifact
    sizes = {} if data is None else data.facts["sizes"]
    facts = [(f"{part} images", str(size)) for part, size in sizes.items()]
    poison = victim.inputs.get("poison")
    made = None if poison is None else run.results[poison.key].artifact
    if made is not None:
        counts = made.facts.get("kinds", {})  # none are fixed where the training is controlled
        facts.extend((f"{kind} samples", str(n)) for kind, n in counts.items() if n)
        if made.facts.get("controls_training"):
            facts.append(("training", "controlled by the attacker"))
        if made.facts.get("test_data"):
            facts.append(("test images", "known to the attacker, who chose among them"))
        facts.extend(_notes(made.facts.get("notes", {})))
    victim_made = run.results[victim.key].artifact
    if victim_made is not None and "imported" in victim_made.facts:
        facts.append(("weights", victim_made.facts["imported"]))
    return facts


def _notes(noted: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """What the attacks have noted, numbers as they are read best."""
    for attack, facts in noted.items():
        for name, value in facts.items():
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            yield f"{attack}: {name.replace('_', ' ')}", shown
