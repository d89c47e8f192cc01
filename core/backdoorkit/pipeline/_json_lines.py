"""The observer ``jsonlines``: one line of JSON for everything that happens."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoorkit.pipeline.catalog import JsonLinesOptions
from backdoorkit.watching import Observer

if TYPE_CHECKING:
    from backdoorkit.pipeline.plan import Step
    from backdoorkit.pipeline.runner import Run, StepResult

__all__ = ["JsonLines"]


class JsonLines(Observer[JsonLinesOptions]):
    """Appends to one file; every line is whole, whoever else appends to it or kills the run."""

    def run_begin(self, run: Run) -> None:
        steps = len(run.plan.steps)
        facts = {"device": run.device, "directory": str(run.directory), "steps": steps}
        self._write(run, "run_begin", **facts, recipe=run.recipe.to_mapping())

    def step_begin(self, run: Run, step: Step) -> None:
        self._write(run, "step_begin", **_names(step))

    def step_end(self, run: Run, result: StepResult, seconds: float) -> None:
        artifact = result.artifact
        self._write(
            run,
            "step_end",
            **_names(result.step),
            seconds=round(seconds, 6),
            reused=result.reused,
            error=result.error,
            artifact=None if artifact is None else str(artifact.path),
            cost={} if artifact is None else artifact.facts.get("cost", {}),
        )

    def run_end(self, run: Run, error: BaseException | None) -> None:
        failed = [result.step.label for result in run.results.values() if result.error]
        table = None if run.table is None else run.table.to_json()
        text = None if error is None else f"{type(error).__name__}: {error}"
        self._write(run, "run_end", error=text, failed=failed, table=table)

    def _write(self, run: Run, event: str, **facts: Any) -> None:
        path = self.config.path or Path(run.directory) / "events.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        line = json.dumps(
            {"time": now, "event": event, "run": run.directory.name, **facts}, ensure_ascii=False
        )
        # One write to a file that is opened for appending: the system keeps lines whole.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)


def _names(step: Step) -> dict[str, Any]:
    return {"kind": step.kind.value, "label": step.label, "key": step.key, "seed": step.seed}
