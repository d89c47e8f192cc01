"""What a run leaves behind: the resolved recipe, the plan, the table, the record, the report."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import backdoorkit
from backdoorkit.pipeline.plan_file import plan_to_json, step_to_json

if TYPE_CHECKING:
    from backdoorkit.pipeline.results import Table
    from backdoorkit.pipeline.runner import Run

__all__ = [
    "PLAN_FILE",
    "RECIPE_FILE",
    "RECORD_FILE",
    "TABLE_FILE",
    "write_plan",
    "write_run",
    "write_whole",
]

RECIPE_FILE: Final = "recipe.toml"
PLAN_FILE: Final = "plan.json"
TABLE_FILE: Final = "table.json"
RECORD_FILE: Final = "record.json"


def write_plan(run: Run, *, started: datetime.datetime) -> None:
    """Write what the run is about to do, so that it can be told how far it came."""
    run.directory.mkdir(parents=True, exist_ok=True)
    write_whole(run.directory / RECIPE_FILE, run.recipe.to_toml())
    values = _header(run, started) | plan_to_json(run.plan)
    write_whole(run.directory / PLAN_FILE, _json(values))


def write_run(run: Run, table: Table, *, started: datetime.datetime) -> Path:
    """Write everything into the run's folder and return the path of the HTML report."""
    from backdoorkit.report.making import make_report
    from backdoorkit.report.runs import read_run

    write_plan(run, started=started)
    write_whole(run.directory / TABLE_FILE, _json(table.to_json()))
    write_whole(run.directory / RECORD_FILE, _json(make_record(run, table, started=started)))
    report = run.directory / "report.html"
    made = make_report([read_run(run.directory)], run.recipe.published)
    write_whole(report, made.to_html())
    return report


def _header(run: Run, started: datetime.datetime) -> dict[str, Any]:
    return {
        "name": run.recipe.name,
        "backdoorkit": backdoorkit.__version__,
        "command": _command(),
        "started": started.isoformat(timespec="microseconds"),
        "device": run.device,
        "seeds": list(run.recipe.seeds),
        "oracle_permitted": run.recipe.oracle,
        "recipe": run.recipe.to_mapping(),
    }


def make_record(run: Run, table: Table, *, started: datetime.datetime) -> dict[str, Any]:
    """Versions, configuration, seeds, hardware and cost of a run, JSON-ready."""
    finished = datetime.datetime.now(datetime.UTC)
    return {
        **_header(run, started),
        "finished": finished.isoformat(timespec="seconds"),
        "seconds": (finished - started).total_seconds(),
        "oracle_used": any(row.oracle for row in table.rows),
        "steps": [_step(run, step.key) for step in run.plan.steps],
    }


def _step(run: Run, key: str) -> dict[str, Any]:
    result = run.results[key]
    step, artifact = result.step, result.artifact
    facts = {} if artifact is None else dict(artifact.facts)
    return {
        **step_to_json(step),
        "reused": result.reused,
        "error": result.error,
        "artifact": None if artifact is None else str(artifact.path.name),
        "facts": facts,
    }


def _command() -> str:
    """The command line, where it is ours; a notebook's says nothing about the run."""
    program = Path(sys.argv[0]) if sys.argv else Path()
    if program.name == "__main__.py":
        program = program.parent
    return shlex.join(["backdoorkit", *sys.argv[1:]]) if program.name == "backdoorkit" else ""


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_whole(path: Path, text: str) -> None:
    """Whole or not at all: a reader never meets half a file."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
