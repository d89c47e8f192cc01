"""Options of the command line, made from those of a configuration class."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from click.shell_completion import CompletionItem

from backdoorkit.errors import nothing_at
from backdoorkit.hooks.options import Rules, option_specs
from backdoorkit.pipeline.recipe import HereText

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backdoorkit.hooks.options import OptionSpec

    # Generic in newer releases of click only.
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType

__all__ = ["ExistingPath", "OptionType", "click_options", "given_values", "parse_value"]


class ExistingPath(click.Path):
    """A file or folder that is there; where it is not, what lies beside it under a like name."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not Path(value).exists():
            self.fail(nothing_at(Path(value), "file" if self.file_okay else "folder"), param, ctx)
        return super().convert(value, param, ctx)


class OptionType(_ParamType):
    """Reads one option's text as its configuration class wants it, and checks the bounds."""

    name = "value"

    def __init__(self, spec: OptionSpec) -> None:
        self._spec = spec
        self._inner = get_args(spec.base_type)[0] if spec.is_sequence else spec.base_type

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        pieces = value.split(",") if self._spec.is_sequence else [value]
        items = tuple(self._item(piece.strip(), param, ctx) for piece in pieces if piece.strip())
        if not self._spec.is_sequence and not items:
            self.fail("must not be empty", param, ctx)
        return items if self._spec.is_sequence else items[0]

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """What stands behind the option in the help: the choices, or the sort of value."""
        del param, ctx
        if self._spec.allowed is not None:
            return f"[{'|'.join(map(str, self._spec.allowed))}]"
        words = {int: "INTEGER", float: "NUMBER", Path: "PATH", str: "TEXT"}
        word = words.get(self._inner, "TOML")
        return f"{word},..." if self._spec.is_sequence else word

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        del ctx, param
        if self._inner is Path:
            return [CompletionItem(incomplete, type="file")]
        allowed = map(str, self._spec.allowed or ())
        return [CompletionItem(item) for item in allowed if item.startswith(incomplete)]

    def _item(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        value = self._read(text, param, ctx)
        bounds = {key: getattr(self._spec, key) for key in ("ge", "gt", "le", "lt")}
        rules = Rules(help="", choices=self._spec.allowed, **bounds)
        if fault := rules.fault(value):
            self.fail(fault, param, ctx)
        return value

    def _read(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        for choice in self._spec.allowed or ():
            if text == str(choice):
                return choice
        if self._inner in (int, float):
            try:
                return self._inner(text)
            except ValueError:
                word = "a whole number" if self._inner is int else "a number"
                self.fail(f"must be {word}, not {text!r}", param, ctx)
        if self._inner is Path:
            return HereText(text)
        return text if self._inner is str or self._spec.allowed else parse_value(text)


def parse_value(text: str) -> Any:
    """``text`` as a TOML value, or as it stands where it is none (text without quotes)."""
    try:
        values = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        values = {}
    value = values["value"] if len(values) == 1 else text
    return HereText(value) if isinstance(value, str) else value


def click_options(config: type) -> list[click.Option]:
    """One option per field; none has a default here, so that only what is given is passed on."""
    return [_click_option(spec) for spec in option_specs(config)]


def given_values(config: type, params: Mapping[str, Any]) -> dict[str, Any]:
    """What the user gave, of the values that click returns for :func:`click_options`."""
    values: dict[str, Any] = {}
    for spec in option_specs(config):
        value = params[spec.name]
        if spec.is_sequence:
            # Repeated, separated by commas, or both.
            value = [item for group in value for item in group] or None
        if value is not None:
            values[spec.name] = value
    return values


def _click_option(spec: OptionSpec) -> click.Option:
    if spec.base_type is bool:
        declaration = f"{spec.flag}/{spec.flag.replace('--', '--no-', 1)}"
        return click.Option([spec.name, declaration], default=None, help=_help(spec))
    return click.Option(
        [spec.name, spec.flag],
        type=OptionType(spec),
        multiple=spec.is_sequence,
        help=_help(spec),
    )


def _help(spec: OptionSpec) -> str:
    facts = ["required"] if spec.required else []
    if spec.default is not None and not spec.required:
        facts.append(f"default {spec.default_text}")
    if spec.bounds:
        facts.append(f"in {spec.bounds}")
    if spec.symbol:
        facts.append(f"{spec.symbol} in the paper")
    return f"{spec.help}  ({'; '.join(facts)})" if facts else spec.help
