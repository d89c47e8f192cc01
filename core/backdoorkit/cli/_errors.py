"""Errors on the command line: lines on standard error and an exit code, never a stack by itself."""

from __future__ import annotations

import contextlib
import errno
import traceback
from typing import IO, TYPE_CHECKING, Any

import click

from backdoorkit.errors import BackdoorkitError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["INTERRUPTED", "Failure", "explained"]

#: Exit code after Ctrl-C: 128 + SIGINT, as shells have it.
INTERRUPTED = 130


class Failure(click.ClickException):
    """An error with its exit code, shown as one ``Error:`` line per line of its message."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        # Some releases of click declare it as the class's, and all read it from the object.
        self.exit_code = exit_code  # type: ignore[misc, unused-ignore]

    def show(self, file: IO[Any] | None = None) -> None:
        for line in self.message.splitlines() or [""]:
            click.echo(f"Error: {line}", file=file, err=file is None)


@contextlib.contextmanager
def explained(*, show_traceback: bool) -> Iterator[None]:
    """Turn whatever ends a command into lines for its user and an exit code."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except KeyboardInterrupt:
        if show_traceback:
            click.echo(traceback.format_exc(), err=True, nl=False)
        click.echo("interrupted; run the same command again to go on", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            raise  # the reader of a pipe has left: click ends quietly
        if show_traceback:
            click.echo(traceback.format_exc(), err=True, nl=False)
        if isinstance(error, BackdoorkitError):
            raise Failure(str(error), error.exit_code) from error
        what = " ".join(f"{type(error).__name__}: {error}".split())
        advice = "" if show_traceback else "; run again with --traceback to see where"
        raise Failure(f"internal error: {what}; this is a bug{advice}", 1) from error
