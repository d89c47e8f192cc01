"""Whatever goes wrong: lines on standard error and the documented exit code."""

from __future__ import annotations

import errno

import click
import pytest
from click.testing import CliRunner

from backdoorkit.cli import cli
from backdoorkit.errors import (
    BackdoorkitError,
    BrokenPluginError,
    ConfigError,
    ContractError,
    InputError,
    Issue,
    RunFailedError,
    nothing_at,
)


@pytest.fixture
def fail(monkeypatch):
    """Run a command that raises, and return its result."""

    def fail(error, *args):
        @click.command()
        def command():
            raise error

        monkeypatch.setattr(type(cli), "get_command", lambda *_: command)
        return CliRunner().invoke(cli, [*args, "run"])

    return fail


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BackdoorkitError("m"), 1),
        (ContractError("m"), 1),
        (RunFailedError("m"), 1),
        (InputError("m"), 2),
        (BrokenPluginError("m"), 3),
    ],
)
def test_errors_raised_on_purpose_are_one_line_with_their_exit_code(fail, error, code):
    result = fail(error)
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", "Error: m\n")


def test_every_fault_of_a_configuration_is_a_line(fail):
    result = fail(ConfigError([Issue("a", "must be 1"), Issue("b", "must be 2")]))
    assert result.stderr == "Error: a: must be 1\nError: b: must be 2\n"
    assert result.exit_code == 2


def test_a_bug_is_one_line_that_says_what_to_do(fail):
    result = fail(ZeroDivisionError("division\nby zero"))
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: internal error: ZeroDivisionError: division by zero; this is a bug; "
        "run again with --traceback to see where\n"
    )


@pytest.mark.parametrize("error", [ZeroDivisionError("z"), InputError("z")])
def test_the_traceback_is_shown_on_demand(fail, error):
    result = fail(error, "--traceback")
    assert "Traceback (most recent call last)" in result.stderr
    assert "in command" in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert "--traceback" not in last
    assert result.exit_code == getattr(error, "exit_code", 1)


def test_an_interruption_says_how_to_go_on(fail):
    result = fail(KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr.strip() == "interrupted; run the same command again to go on"


def test_a_closed_pipe_is_quiet(fail):
    result = fail(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert (result.exit_code, result.output) == (1, "")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["rnu"], "No such command 'rnu'. Did you mean 'run'?"),
        (["qqqq"], "Known: run, report, scan, repair, calibrate, plugins"),
        (["--tracebak"], "--traceback"),
    ],
)
def test_typos_are_usage_errors_with_the_nearest_name(args, message):
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--zz", "run"], "No such option '--zz'. See 'backdoorkit --help'."),
        (["run", "--zz"], "No such option '--zz'. See 'backdoorkit run --help'."),
        (["rn"], "No such command 'rn'. Did you mean 'run'? See 'backdoorkit --help'."),
        (
            ["run", "--file", "quickstrt.toml"],
            "Invalid value for '-f' / '--file': there is no file quickstrt.toml; did you mean "
            "'quickstart.toml'? See 'backdoorkit run --help'.",
        ),
    ],
)
def test_what_is_mistyped_is_one_line(tmp_path, monkeypatch, args, line):
    (tmp_path / "quickstart.toml").touch()
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, args, prog_name="backdoorkit")
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"Error: {line}\n")


def test_a_path_has_the_nearest_name_that_lies_beside_it(tmp_path):
    (tmp_path / "victim.safetensors").touch()
    missing = tmp_path / "victm.safetensors"
    found = str(tmp_path / "victim.safetensors")
    assert nothing_at(missing) == f"there is no file {missing}; did you mean {found!r}?"
    other = tmp_path / "nowhere" / "images"
    assert nothing_at(other, "folder") == f"there is no folder {other}"
