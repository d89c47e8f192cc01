"""The HTML reports of scans and repairs: one file each, no script, every string escaped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import backdoorkit
from backdoorkit.handed._pictures import trigger_pictures
from backdoorkit.pipeline.grids import percent
from backdoorkit.report.pictures import png_file

if TYPE_CHECKING:
    from pathlib import Path

    from backdoorkit.handed._preparing import Prepared
    from backdoorkit.handed._verdicts import Verdict
    from backdoorkit.handed.repairing import Repair
    from backdoorkit.handed.scanning import Scan
    from backdoorkit.pipeline.recipe import Recipe

__all__ = ["write_repair_report", "write_scan_report"]

_WORDS: Final = {True: "above its threshold", False: "below its threshold", None: "no verdict"}


def write_scan_report(scan: Scan, recipe: Recipe) -> None:
    """Write the report of a scan to where it says."""
    values = {
        "title": f"Scan of {scan.prepared.model.path.name}",
        "headline": scan.verdict.capitalize(),
        "target": scan.target,
        "repair": None,
    }
    _write(scan.report, scan.prepared, scan.verdicts, scan.warnings, recipe, values)


def write_repair_report(repair: Repair, recipe: Recipe, note: str) -> None:
    """Write the report of a repair to where it says."""
    values = {
        "title": f"Repair of {repair.prepared.model.path.name}",
        "headline": f"Repaired by {repair.defense}: {repair.out.name}",
        "target": None,
        "repair": repair,
        "note": note,
    }
    _write(repair.report, repair.prepared, repair.verdicts, repair.warnings, recipe, values)


def _write(
    path: Path,
    prepared: Prepared,
    verdicts: tuple[Verdict, ...],
    warnings: tuple[str, ...],
    recipe: Recipe,
    values: dict[str, Any],
) -> None:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("backdoorkit.handed"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("handed.html.j2").render(
        version=backdoorkit.__version__,
        model=prepared.model,
        prepared=prepared,
        shape=" x ".join(map(str, prepared.image_shape)),
        verdicts=[_shown(verdict) for verdict in verdicts],
        warnings=warnings,
        recipe=recipe.to_toml(),
        percent=percent,
        **values,
    )
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _shown(verdict: Verdict) -> dict[str, Any]:
    details = dict(verdict.details)
    # A detector's own figures show its triggers better than anybody else can.
    tensors = None if verdict.figures else verdict.tensors
    return {
        "verdict": verdict,
        "word": _WORDS[verdict.detected],
        "triggers": [] if tensors is None else trigger_pictures(tensors, details),
        "figures": [
            {"picture": png_file(path), "title": name.replace("-", " "), "caption": caption}
            for name, (path, caption) in verdict.figures.items()
        ],
        "facts": [(key.replace("_", " "), _fact(value)) for key, value in details.items()],
    }


def _fact(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_fact, value)) or "none"
    return str(value)
