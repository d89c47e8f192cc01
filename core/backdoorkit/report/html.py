"""One self-contained HTML file: no network, every string escaped, readable without its script."""

from __future__ import annotations

import base64
import hashlib
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import backdoorkit
from backdoorkit.report.drawing import PANEL, curves, heat_maps, panels
from backdoorkit.report.sections import SECTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from backdoorkit.report.making import Report
    from backdoorkit.report.runs import StoredRun

__all__ = ["render_report"]

_PNG = b"\x89PNG\r\n\x1a\n"


def render_report(report: Report) -> str:
    """The report as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("backdoorkit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = environment.get_template("sorting.js.j2").render().strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    sections: dict[str, list[Any]] = {name: [] for name in SECTIONS}
    for section in report.sections:
        sections[section.name].append(section)
    return environment.get_template("report.html.j2").render(
        report=report,
        version=backdoorkit.__version__,
        script=script,
        script_digest=digest,
        style=environment.get_template("report.css.j2").render(),
        sections=sections,
        rules=_rules(report),
        heat_maps=heat_maps(report.table),
        panels=panels(report.table),
        panel=PANEL,
        verdict_figures=list(_figures(report, report.table.detections, "detector")),
        analysis_figures=list(_figures(report, report.table.findings, "analysis")),
        victims=[victim for run in report.runs for victim in _victims(run)],
        records=[
            _record(name, run) for name, run in zip(report.run_names, report.runs, strict=True)
        ],
    )


def _rules(report: Report) -> dict[str, str]:
    """How each column was counted, from the first cell that has it."""
    rules: dict[str, str] = {}
    for row in report.table.rows:
        for cell in row.cells:
            for column, value in cell.metrics.items():
                if value.get("rule"):
                    rules.setdefault(column, value["rule"])
    return rules


# -- figures of detectors and analyses -------------------------------------------------------------


def _figures(report: Report, items: Sequence[Any], method: str) -> Iterator[dict[str, str]]:
    for item in items:
        for name, path in item.figures.items():
            picture = _stored_picture(report.runs, path)
            title = f"{getattr(item, method)}, {item.attack}, seed {item.seed}"
            yield {
                "of": getattr(item, method),
                "picture": picture or "",
                "title": f"{title}: {name.replace('-', ' ')}",
                "caption": item.captions.get(name, ""),
            }


def _stored_picture(runs: Sequence[StoredRun], path: str) -> str | None:
    """A figure as a data URI; None unless it is a whole PNG file of an artifact of the store.

    The path comes from a file: of it only the last three names count, below the run's own store.
    """
    *_, kind, key, name = ("", "", "", *PurePath(path).parts)
    for run in runs:
        artifact = run.artifact({"kind": kind, "key": key}, name)
        if artifact is not None and name in artifact.files:
            content = artifact.file(name).read_bytes()
            if content.startswith(_PNG):
                return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
    return None


# -- victims ---------------------------------------------------------------------------------------


def _victims(run: StoredRun) -> Iterator[dict[str, Any]]:
    """One per attack, data and model: its trigger on test images, and how its training went."""
    steps = {step["key"]: step for step in run.record.get("steps", [])}
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for step in steps.values():
        if step["kind"] == "victim" and step["facts"]:
            groups.setdefault(_title(run, step), []).append(step)
    for title, alike in groups.items():
        histories = {
            step["seed"]: step["facts"].get("training", {}).get("history", []) for step in alike
        }
        yield {
            "title": title,
            **_pictures(run, alike[0]),
            "seed": alike[0]["seed"],
            "curves": list(curves({seed: h for seed, h in histories.items() if len(h) > 1})),
            "facts": list(_victim_facts(steps, alike[0])),
        }


def _title(run: StoredRun, step: Mapping[str, Any]) -> str:
    names = run.victim_names.get(step["key"])
    if names is None:  # a run of an older version: the step's label has to do
        return str(step["label"]).removesuffix(f", seed {step['seed']}")
    return f"{names['attack']} on {names['data']}, {names['model']}"


def _pictures(run: StoredRun, step: Mapping[str, Any]) -> dict[str, Any]:
    from backdoorkit.report.pictures import contact_sheet, trigger_picture

    name = "samples.safetensors"
    artifact = run.artifact(step, name)
    if artifact is None or name not in artifact.files:
        return {"trigger": None, "sheet": None, "rows": ()}
    samples = artifact.file(name)
    sheet = contact_sheet(samples)
    return {"trigger": trigger_picture(samples), "sheet": sheet.uri, "rows": sheet.rows}


def _victim_facts(
    steps: Mapping[str, Mapping[str, Any]], victim: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    nothing: Mapping[str, Any] = {"facts": {}}
    inputs = victim["inputs"]
    data = steps.get(inputs.get("data", ""), nothing)["facts"]
    made = steps.get(inputs.get("poison", ""), nothing)["facts"]
    for part, size in data.get("sizes", {}).items():
        yield f"{part} images", f"{size:,}"
    # None are fixed where the training is controlled.
    for kind, count in made.get("kinds", {}).items():
        if count:
            yield f"{kind} samples", f"{count:,}"
    if made.get("controls_training"):
        yield "training", "controlled by the attacker"
    if made.get("test_data"):
        yield "test images", "known to the attacker, who chose among them"
    for attack, facts in made.get("notes", {}).items():
        for name, value in facts.items():
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            yield f"{attack}: {name.replace('_', ' ')}", shown
    if "imported" in victim["facts"]:
        yield "weights", str(victim["facts"]["imported"])


# -- record ----------------------------------------------------------------------------------------


def _record(name: str, run: StoredRun) -> dict[str, Any]:
    record = run.record
    steps = record.get("steps", [])
    facts = {
        "run": f"{run.directory.name}",
        "command": record.get("command", ""),
        "started": _moment(record.get("started", "")),
        "finished": _moment(record.get("finished", "")),
        "seeds": ", ".join(map(str, record.get("seeds", []))),
        "device": record.get("device", ""),
        "hardware": "; ".join(_hardware(steps)),
        "versions": ", ".join(_versions(record, steps)),
        "oracle": "permitted" if record.get("oracle_permitted") else "not permitted",
        "steps": _reused(steps),
    }
    return {
        "name": name,
        "facts": [(key, str(value)) for key, value in facts.items() if value],
        "recipe": run.recipe,
        "steps": [_step(step) for step in steps],
    }


def _moment(text: str) -> str:
    """``2026-11-25 13:06:06 UTC`` of an ISO 8601 time."""
    return text[:19].replace("T", " ") + (" UTC" if text.endswith("+00:00") else "")


def _hardware(steps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What the steps ran on, once each."""
    found = [step["facts"]["hardware"] for step in steps if "hardware" in step["facts"]]
    described = [
        f"{h.get('device', '?')} {h.get('name', '')}, {h.get('threads', '?')} threads, "
        f"torch {h.get('torch', '?')}, Python {h.get('python', '?')}"
        for h in found
    ]
    yield from dict.fromkeys(described)


def _versions(record: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """The distributions that the run's methods come from."""
    found = {f"backdoorkit {record.get('backdoorkit', '')}".strip()}
    for step in steps:
        for fact in step["facts"].values():
            if isinstance(fact, dict) and fact.get("distribution"):
                found.add(f"{fact['distribution']} {fact.get('version', '')}".strip())
    return sorted(found)


def _reused(steps: Sequence[Mapping[str, Any]]) -> str:
    reused = sum(bool(step["reused"]) for step in steps)
    failed = sum(bool(step["error"]) for step in steps)
    text = f"{len(steps)}, of which {reused} were in the store already"
    return text + (f" and {failed} were not done" if failed else "")


def _step(step: Mapping[str, Any]) -> dict[str, Any]:
    cost = step["facts"].get("cost", {})
    return {
        "label": step["label"],
        "seconds": float(cost.get("seconds", 0)),
        "samples": int(cost.get("samples_seen", 0)),
        "steps": int(cost.get("gradient_steps", 0)),
        "memory": cost.get("peak_memory_bytes", 0) / (1 << 20),
        "made": step["error"] or ("from the store" if step["reused"] else "now"),
    }
