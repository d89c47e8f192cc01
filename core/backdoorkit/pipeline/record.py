"""What a run leaves behind: the resolved recipe, the table, the record, and the report."""

from __future__ import annotations

import datetime
import json
import os
from typing import TYPE_CHECKING, Any

import backdoorkit
from backdoorkit.report.html import render_report

if TYPE_CHECKING:
    from pathlib import Path

    from backdoorkit.pipeline.results import Table
    from backdoorkit.pipeline.runner import Run

__all__ = ["write_run"]


def write_run(run: Run, table: Table, *, started: datetime.datetime) -> Path:
    """Write everything into the run's folder and return the path of the HTML report."""
    run.directory.mkdir(parents=True, exist_ok=True)
    record = make_record(run, table, started=started)
    _write(run.directory / "recipe.toml", run.recipe.to_toml())
    _write(run.directory / "table.json", _json(table.to_json()))
    _write(run.directory / "record.json", _json(record))
    report = run.directory / "report.html"
    _write(report, render_report(run, table, record))
    return report


def make_record(run: Run, table: Table, *, started: datetime.datetime) -> dict[str, Any]:
    """Versions, configuration, seeds, hardware and cost of a run, JSON-ready."""
    finished = datetime.datetime.now(datetime.UTC)
    return {
        "name": run.recipe.name,
        "backdoorkit": backdoorkit.__version__,
        "started": started.isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "seconds": (finished - started).total_seconds(),
        "device": run.device,
        "seeds": list(run.recipe.seeds),
        "oracle_permitted": run.recipe.oracle,
        "oracle_used": any(row.oracle for row in table.rows),
        "recipe": run.recipe.to_mapping(),
        "steps": [_step(run, step.key) for step in run.plan.steps],
    }


def _step(run: Run, key: str) -> dict[str, Any]:
    result = run.results[key]
    step, artifact = result.step, result.artifact
    facts = {} if artifact is None else dict(artifact.facts)
    return {
        "kind": step.kind.value,
        "key": step.key,
        "label": step.label,
        "seed": step.seed,
        "inputs": {role: source.key for role, source in step.inputs.items()},
        "reused": result.reused,
        "error": result.error,
        "artifact": None if artifact is None else str(artifact.path.name),
        "facts": facts,
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a reader never meets half a file."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
