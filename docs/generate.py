"""Writes ``docs/methods/options.md`` from the registry: every option of every method here.

    python docs/generate.py

Only distributions of this repository are listed, whatever else is installed.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoorkit.hooks.info import Kind
from backdoorkit.hooks.options import OptionSpec, option_specs
from backdoorkit.hooks.registry import load_registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backdoorkit.hooks.registry import Method

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "methods" / "options.md"
HEADINGS = {
    Kind.ATTACK: "Attacks",
    Kind.DEFENSE: "Defenses",
    Kind.DETECTOR: "Detectors",
    Kind.METRIC: "Metrics",
    Kind.DATASET: "Data sets",
    Kind.MODEL: "Architectures",
    Kind.EXECUTOR: "Executors",
}
INTRODUCTION = """# Options of all methods

Made from the installed plugins by `python docs/generate.py`; do not edit. The same is shown by
`backdoorkit plugins show NAME`. On the command line an option is written `--poison-rate`, in a
recipe `poison_rate`.
"""


def distributions() -> set[str]:
    """Names of this repository's distributions."""
    files = [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")]
    return {tomllib.loads(file.read_text(encoding="utf-8"))["project"]["name"] for file in files}


def render() -> str:
    """The whole page."""
    ours = distributions()
    registry = load_registry()
    parts = [INTRODUCTION]
    for kind in Kind:
        methods = [method for method in registry.methods(kind) if method.distribution in ours]
        if methods:
            parts.append(f"## {HEADINGS[kind]}\n")
            parts += ["\n".join(lines(method)) + "\n" for method in methods]
    return "\n".join(parts)


def lines(method: Method) -> Iterator[str]:
    """One method's section."""
    info = method.info
    yield f"### {info.name}"
    yield ""
    yield info.summary
    yield ""
    facts = {
        "Distribution": f"`{method.distribution}`",
        "Reference": info.reference,
        "Stage": info.stage.value if info.stage else "",
        "Needs": ", ".join(sorted(info.needs)),
    }
    yield from (f"- {label}: {value}" for label, value in facts.items() if value)
    for name, values in info.presets.items():
        listed = ", ".join(f"`{key} = {plain(value)}`" for key, value in values.items())
        yield f"- Preset `{name}`: {listed or 'the defaults'}"
    yield ""
    specs = option_specs(info.config)
    if not specs:
        yield "No options."
        return
    yield "| option | type | default | symbol | meaning |"
    yield "|---|---|---|---|---|"
    yield from (row(spec) for spec in specs)


def row(spec: OptionSpec) -> str:
    """One option as a line of the table."""
    default = spec.default_text if spec.required else f"`{spec.default_text}`"
    cells = [f"`{spec.name}`", spec.type_name, default, spec.symbol or "", spec.help]
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return "| " + " | ".join(escaped) + " |"


def plain(value: Any) -> str:
    """A preset's value as in a recipe."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(list(value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"wrote {TARGET.relative_to(ROOT)}\n")
