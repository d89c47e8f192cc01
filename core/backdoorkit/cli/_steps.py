"""Steps of a chain: one command per installed attack, defense, detector and analysis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NoReturn

import attrs
import click

from backdoorkit.cli._context import get_registry
from backdoorkit.cli._options import click_options, given_values
from backdoorkit.errors import InputError, UnknownNameError
from backdoorkit.hooks.info import Kind
from backdoorkit.pipeline.recipe import COMPOSED, NO_ATTACK, NoOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from backdoorkit.hooks.registry import Method, Registry

__all__ = ["ChainStep", "StepGroup", "joined"]

_ROOMS: Final = {
    Kind.ATTACK: "attacks",
    Kind.DEFENSE: "defenses",
    Kind.DETECTOR: "detectors",
    Kind.ANALYSIS: "analyses",
}
_CLEAN_TWIN: Final = "Clean twin: the same model trained on clean data."
#: Stands between two attacks that one victim suffers.
_AND: Final = "and"
_JOINS: Final = "Between two attacks: both on one victim, with disjoint samples."


@attrs.frozen
class ChainStep:
    """One step of the command line: its table in the recipe, and which array it belongs to."""

    room: str
    table: dict[str, Any]


def joined(steps: Iterable[ChainStep]) -> list[ChainStep]:
    """The steps, with attacks that ``and`` stands between made into one.

    Raises :class:`InputError` where it stands elsewhere.
    """
    made: list[ChainStep] = []
    joins = False
    for step in steps:
        attack_before = bool(made) and made[-1].room == "attacks"
        if step.room == _AND:
            if joins or not attack_before:
                raise InputError("'and' stands between two attacks, as in 'badnets and blended'")
            joins = True
        elif joins:
            if step.room != "attacks":
                raise InputError(f"behind 'and' an attack is wanted, not {step.table['name']!r}")
            before = made.pop().table
            parts = before["parts"] if before["name"] == COMPOSED else [before]
            table = {"name": COMPOSED, "parts": [*parts, step.table]}
            made.append(ChainStep("attacks", table))
            joins = False
        else:
            made.append(step)
    if joins:
        raise InputError("behind 'and' an attack is wanted, and there is nothing")
    return made


class StepGroup(click.Group):
    """A chain whose steps are the installed attacks, defenses, detectors and analyses."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        steps = _step_methods(get_registry(ctx))
        return [NO_ATTACK, *(_command_name(method, steps) for method in steps)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == NO_ATTACK:
            return _step_command(NO_ATTACK, "attacks", None)
        if cmd_name == _AND:
            return click.Command(
                _AND, callback=lambda: ChainStep(_AND, {}), help=_JOINS, short_help=_JOINS
            )
        steps = _step_methods(get_registry(ctx))
        found = [m for m in steps if cmd_name in (m.name, m.qualified_name)]
        if len(found) != 1:
            return None
        return _step_command(cmd_name, _ROOMS[found[0].kind], found[0])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if (
            not ctx.resilient_parsing
            and not name.startswith("-")
            and self.get_command(ctx, name) is None
        ):
            _refuse_step(get_registry(ctx), name)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        steps = _step_methods(get_registry(ctx))
        for kind, room in _ROOMS.items():
            rows = [
                (_command_name(method, steps), method.info.summary)
                for method in steps
                if method.kind is kind
            ]
            if kind is Kind.ATTACK:
                rows.insert(0, (NO_ATTACK, _CLEAN_TWIN))
                rows.append((_AND, _JOINS))
            if rows:
                with formatter.section(f"Steps ({room})"):
                    formatter.write_dl(rows)


class _StepCommand(click.Command):
    """A step; says so where an option of the run stands behind it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            run = ctx.parent.command if ctx.parent else self
            if error.option_name in {name for option in run.params for name in option.opts}:
                ctx.fail(
                    f"{error.option_name} is an option of the run, not of {ctx.info_name}; "
                    "put it before the first step"
                )
            raise


def _step_methods(registry: Registry) -> list[Method]:
    return [method for kind in _ROOMS for method in registry.methods(kind)]


def _command_name(method: Method, steps: Sequence[Method]) -> str:
    """Qualified only where methods of two kinds have one name."""
    alone = sum(other.name == method.name for other in steps) == 1
    return method.name if alone else method.qualified_name


def _step_command(name: str, room: str, method: Method | None) -> click.Command:
    config = NoOptions if method is None else method.info.config
    summary = help_text = _CLEAN_TWIN
    params: list[click.Parameter] = list(click_options(config))
    if method is not None:
        summary = f"[{method.kind}] {method.info.summary}"
        help_text = f"{summary}\n\n{method.info.reference}".rstrip()
        if method.info.presets:
            params.append(_preset_option(method))

    def parsed(**params: Any) -> ChainStep:
        table = {"name": NO_ATTACK if method is None else method.name}
        if params.get("preset") is not None:
            table["preset"] = params["preset"]
        return ChainStep(room, table | given_values(config, params))

    return _StepCommand(
        name,
        params=params,
        callback=parsed,
        help=help_text,
        short_help=summary,
    )


def _preset_option(method: Method) -> click.Option:
    return click.Option(
        ["preset", "--preset"],
        type=click.Choice(sorted(method.info.presets)),
        help="Named set of values; what else is given comes over it.",
    )


def _refuse_step(registry: Registry, name: str) -> NoReturn:
    """Say why there is no step of that name."""
    known = [method.name for method in _step_methods(registry)]
    try:
        method = registry.find(name)
    except UnknownNameError:
        raise UnknownNameError("attack, defense, detector or analysis", name, known) from None
    raise InputError(
        f"{name!r} is a {method.kind}, and steps are attacks, defenses, detectors and analyses"
    )
