"""``backdoorkit plugins``: what is installed, what it offers, and whether it keeps its word."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import click

from backdoorkit.cli._context import get_registry
from backdoorkit.hooks.info import Kind
from backdoorkit.hooks.options import OptionSpec, json_schema, option_specs
from backdoorkit.hooks.registry import resolve_config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backdoorkit.hooks.registry import Method, PluginRecord, Registry

__all__ = ["plugins"]

_COLUMNS: Final = ("name", "kind", "stage", "plugin", "version", "state")


@click.group()
def plugins() -> None:
    """List, describe and check the installed plugins and their methods."""


@plugins.command("list")
@click.option("--kind", type=click.Choice([kind.value for kind in Kind]), help="Only this kind.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_plugins(context: click.Context, kind: str | None, as_json: bool) -> None:
    """List all methods, and the plugins that cannot be used."""
    registry = get_registry(context)
    rows = _rows(registry, kind)
    if as_json:
        records = [_record_facts(record) for record in registry.plugins]
        _echo_json({"methods": rows, "plugins": records})
        return
    faulty = [record for record in registry.plugins if record.error]
    table = rows + [_faulty_row(record) for record in faulty]
    _print_table([[row[column] or "-" for column in _COLUMNS] for row in table])
    for record in faulty:
        click.echo(f"{record.state}: {record.label}: {record.error}", err=True)


@plugins.command("show")
@click.argument("name")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of its options.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def show_method(context: click.Context, name: str, schema: bool, as_json: bool) -> None:
    """Describe the method NAME (or KIND:NAME): reference, needs, presets, options."""
    method = get_registry(context).find(name)
    if schema:
        _echo_json(json_schema(method.info.config))
    elif as_json:
        _echo_json(_method_facts(method))
    else:
        click.echo("\n".join(_describe(method)))


@plugins.command("check")
@click.argument("name")
@click.option(
    "--set",
    "assignments",
    metavar="OPTION=VALUE",
    multiple=True,
    help="Run it with this option, to be faster or because it is required; repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def check_method(
    context: click.Context, name: str, assignments: tuple[str, ...], as_json: bool
) -> None:
    """Run the conformance checks on the method NAME (or KIND:NAME).

    Ends with 1 if a check fails.
    """
    # Reading recipes and torch take their time, which listings need not wait for.
    from backdoorkit.cli._overrides import parse_assignment, set_value

    registry = get_registry(context)
    method = registry.find(name)
    values: dict[str, Any] = {}
    for assignment in assignments:
        set_value(values, *parse_assignment(assignment))
    if values:
        resolve_config(method, values, "--set")
    from backdoorkit.testing.checks import run_checks

    outcomes = []
    for outcome in run_checks(registry, method, values):
        outcomes.append(outcome)
        if not as_json:
            click.echo(str(outcome))
    failed = sum(outcome.failed for outcome in outcomes)
    counts = Counter(outcome.status.value for outcome in outcomes)
    if as_json:
        checks = [outcome.to_json() for outcome in outcomes]
        _echo_json({"method": method.qualified_name, "ok": not failed, "checks": checks})
    else:
        told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        click.echo(f"{method.qualified_name}: {told}")
    if failed:
        context.exit(1)


# -- facts -----------------------------------------------------------------------------------------


def _rows(registry: Registry, kind: str | None) -> list[dict[str, str]]:
    return [
        {
            "name": method.name,
            "kind": method.kind.value,
            "stage": method.info.stage.value if method.info.stage else "",
            "plugin": method.plugin,
            "version": method.version,
            "state": "ok",
            "summary": method.info.summary,
        }
        for method in registry.methods(Kind(kind) if kind else None)
    ]


def _faulty_row(record: PluginRecord) -> dict[str, str]:
    empty = dict.fromkeys(_COLUMNS, "")
    return empty | {"plugin": record.name, "version": record.version, "state": record.state.value}


def _record_facts(record: PluginRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "module": record.module,
        "distribution": record.distribution,
        "version": record.version,
        "state": record.state.value,
        "error": record.error,
        "methods": list(record.methods),
        "published": list(record.published),
        "import_ms": round(record.import_ms, 2),
    }


def _method_facts(method: Method) -> dict[str, Any]:
    info = method.info
    return {
        "name": info.name,
        "kind": method.kind.value,
        "stage": info.stage.value if info.stage else None,
        "summary": info.summary,
        "reference": info.reference,
        "needs": sorted(need.value for need in info.needs),
        "presets": {name: dict(values) for name, values in info.presets.items()},
        "implementation": info.implementation,
        "plugin": method.plugin,
        "distribution": method.distribution,
        "version": method.version,
        "options": [_option_facts(spec) for spec in option_specs(info.config)],
    }


def _option_facts(spec: OptionSpec) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": spec.name, "type": spec.type_name, "required": spec.required}
    if not spec.required:
        facts["default"] = spec.plain_default
    return facts | {"symbol": spec.symbol, "help": spec.help}


# -- text ------------------------------------------------------------------------------------------


def _describe(method: Method) -> list[str]:
    info = method.info
    kind = f"{method.kind}, {info.stage}" if info.stage else method.kind.value
    origin = f"{method.distribution} {method.version}".strip() or "this process"
    lines = [f"{info.name} ({kind}), plugin {method.plugin!r} from {origin}", "", info.summary, ""]
    facts = {
        "Reference": info.reference,
        "Needs": ", ".join(sorted(info.needs)),
    }
    lines += [f"{label}: {value}" for label, value in facts.items() if value]
    if info.presets:
        lines += ["", "Presets:"]
    for name, values in info.presets.items():
        listed = ", ".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
        lines.append(f"  {name}")
        lines.append(_indented(listed or "the defaults"))
    lines += ["", "Options:" if option_specs(info.config) else "No options."]
    for spec in option_specs(info.config):
        symbol = f", {spec.symbol} in the paper" if spec.symbol else ""
        default = "required" if spec.required else f"default {spec.default_text}"
        lines.append(f"  {spec.flag}  {spec.type_name}, {default}{symbol}")
        lines.append(_indented(spec.help))
    return lines


def _indented(text: str) -> str:
    return click.wrap_text(text, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    if sys.stdout.isatty():
        _print_rich_table(rows)
        return
    lines = [list(_COLUMNS), *map(list, rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(_COLUMNS))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _print_rich_table(rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column)
    for row in rows:
        style = "" if row[-1] == "ok" else "red"
        table.add_row(*(Text(cell) for cell in row), style=style)
    Console().print(table)  # without colours where NO_COLOR is set


def _echo_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
