"""Errors on the command line: lines on standard error and an exit code, never a stack by itself."""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
import traceback
from typing import IO, TYPE_CHECKING, Any, NoReturn

import click

from backdoorkit.errors import BackdoorkitError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["INTERRUPTED", "TERMINATED", "Failure", "explained", "raise_in_one_line"]

#: Exit code after Ctrl-C: 128 + SIGINT, as shells have it.
INTERRUPTED = 130
#: The same after SIGTERM, with which other programs end this one.
TERMINATED = 143


class _Terminated(KeyboardInterrupt):
    """SIGTERM: ends a command as tidily as Ctrl-C does."""


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
        with _terminable():
            yield
    except click.UsageError as error:
        raise_in_one_line(error)
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except KeyboardInterrupt as interrupt:
        if show_traceback:
            click.echo(traceback.format_exc(), err=True, nl=False)
        click.echo("interrupted; run the same command again to go on", err=True)
        code = TERMINATED if isinstance(interrupt, _Terminated) else INTERRUPTED
        raise click.exceptions.Exit(code) from None
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


def raise_in_one_line(error: click.UsageError) -> NoReturn:
    """The fault and where the help is, in place of the usage around them."""
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        raise error  # it is the help
    message = " ".join(error.format_message().split())
    if not message.endswith((".", "?", ")")):
        message += "."
    if error.ctx is not None:
        message += f" See '{error.ctx.command_path} --help'."
    raise Failure(message, error.exit_code) from error


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Tidy up after SIGTERM too, unless the process around this one has plans of its own."""

    def terminate(signum: int, frame: FrameType | None) -> None:
        del signum, frame
        raise _Terminated

    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
