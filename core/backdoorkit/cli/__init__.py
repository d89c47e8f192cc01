"""The command line: thin, and light until something runs."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any, Final

import click

from backdoorkit import __version__
from backdoorkit.cli._errors import explained, raise_in_one_line
from backdoorkit.errors import nearest

if TYPE_CHECKING:
    from backdoorkit.hooks.registry import Registry

__all__ = ["cli", "main"]

#: Command -> where it is, and its line in the help: so that the help imports none of them.
_COMMANDS: Final = {
    "run": ("backdoorkit.cli.run:run", "Attack, train, defend, detect and measure."),
    "report": (
        "backdoorkit.cli.report:report",
        "Show runs as one table: HTML, Markdown, CSV, LaTeX, JSON.",
    ),
    "scan": ("backdoorkit.cli.scan:scan", "Look for a backdoor in a model file."),
    "repair": ("backdoorkit.cli.repair:repair", "Write a cleaner copy of a model file."),
    "calibrate": (
        "backdoorkit.cli.calibrate:calibrate",
        "Score clean models, so that 'scan' can tell chance from a backdoor.",
    ),
    "plugins": (
        "backdoorkit.cli.plugins:plugins",
        "List, describe and check plugins and their methods.",
    ),
}
_ENVIRONMENT: Final = "BACKDOORKIT"


class _Commands(click.Group):
    """Imports a command when it is used, and explains every error in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            close = nearest(name, _COMMANDS)
            advice = f"Did you mean {close!r}?" if close else f"Known: {', '.join(_COMMANDS)}."
            ctx.fail(f"No such command {name!r}. {advice}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            raise_in_one_line(error)

    def invoke(self, ctx: click.Context) -> Any:
        with explained(show_traceback=ctx.params["traceback"]):
            return super().invoke(ctx)


@click.group(
    cls=_Commands,
    context_settings={
        "auto_envvar_prefix": _ENVIRONMENT,
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
@click.version_option(__version__, prog_name="backdoorkit", message="%(prog)s %(version)s")
@click.option(
    "--plugins", metavar="NAMES", help="Load only these plugins (comma-separated entry names)."
)
@click.option(
    "--block-plugin", metavar="NAME", multiple=True, help="Do not load this plugin; repeatable."
)
@click.option("--strict-plugins", is_flag=True, help="End with 3 if any plugin cannot be used.")
@click.option("--traceback", is_flag=True, help="Show where in the code an error came from.")
@click.option("-v", "--verbose", count=True, help="Say more; -vv for everything.")
@click.option("-q", "--quiet", count=True, help="Show errors only, and no progress.")
@click.pass_context
def cli(
    context: click.Context,
    plugins: str | None,
    block_plugin: tuple[str, ...],
    strict_plugins: bool,
    traceback: bool,
    verbose: int,
    quiet: int,
) -> None:
    """Backdoor learning on image classifiers: attacks, defenses, detectors, metrics.

    Every method is a plugin; 'backdoorkit plugins list' shows those installed.
    """
    del traceback

    def load() -> Registry:
        from backdoorkit.hooks.registry import load_registry

        allow = None if plugins is None else [name.strip() for name in plugins.split(",")]
        return load_registry(allow=allow, block=block_plugin, strict=strict_plugins)

    shared = context.ensure_object(dict)
    shared.setdefault("registry", load)
    shared["quiet"] = quiet > verbose
    _set_up_logging(context, verbose - quiet)


def main() -> None:
    """What the command ``backdoorkit`` runs."""
    cli(prog_name="backdoorkit")


# -- logging ---------------------------------------------------------------------------------------


class _Handler(logging.Handler):
    """Lines on standard error, which may be replaced while progress is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        # Details of other libraries are of no use to anyone here.
        if record.levelno >= logging.WARNING or record.name.startswith("backdoorkit"):
            click.echo(self.format(record), err=True)


def _set_up_logging(context: click.Context, verbosity: int) -> None:
    levels = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
    root, handler = logging.getLogger(), _Handler()
    handler.setFormatter(_Formatter())
    before = root.level
    root.addHandler(handler)
    root.setLevel(levels[max(0, min(verbosity + 1, 3))])

    def undo() -> None:
        root.removeHandler(handler)
        root.setLevel(before)

    context.call_on_close(undo)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {super().format(record)}"
