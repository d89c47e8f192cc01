"""`backdoorkit run` carries out: what is printed where, and what is kept."""

from __future__ import annotations

import json
import logging
import sys
import types
from pathlib import Path

import pytest

from backdoorkit.pipeline.results import Cell, Row, Table


@pytest.fixture
def runner(monkeypatch, tmp_path):
    """Stands in for the heavy runner; ``runner.calls`` holds what it was given."""
    report = tmp_path / "made.html"
    report.write_text("<html>")
    cell = Cell(seed=0, metrics={"ACC": {"value": 0.5}})
    row = Row(data="digits", model="m", attack="patch", defense="no defense", cells=(cell,))
    state = types.SimpleNamespace(calls=[], failed=False, error=None, step=None)

    def run_recipe(recipe, registry, store, *, progress):
        state.calls.append((recipe, registry, store, progress))
        sys.stdout.write("a method prints\n")
        logging.getLogger("backdoorkit.x").warning("a warning")
        if state.error is not None:
            raise state.error
        return types.SimpleNamespace(
            table=Table(columns=("ACC",), rows=(row,)),
            directory=tmp_path / "runs",
            report=report,
            failed=state.failed,
        )

    module = types.ModuleType("backdoorkit.pipeline.runner")
    module.run_recipe = run_recipe
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return state


def test_results_and_nothing_else_go_to_standard_output(call, runner, tmp_path):
    result = call("run", "patch")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("attack")
    assert "50.00" in result.stdout
    assert "prints" not in result.stdout
    lines = ["a method prints", "warning: a warning", f"report: {tmp_path / 'made.html'}"]
    assert result.stderr.splitlines() == lines
    recipe, _, store, _ = runner.calls[0]
    assert recipe.attacks[0].name == "patch"
    assert store.root == tmp_path / "backdoorkit-runs"


def test_json_is_the_whole_of_standard_output(call, runner, tmp_path):
    values = json.loads(call("run", "--json", "patch").stdout)
    assert values["failed"] is False
    assert values["report"] == str(tmp_path / "made.html")
    assert values["rows"][0]["mean"] == {"ACC": 0.5}


def test_a_run_with_failed_steps_shows_the_table_and_ends_with_one(call, runner):
    runner.failed = True
    result = call("run", "patch")
    assert result.exit_code == 1
    assert "50.00" in result.stdout
    assert result.stderr.splitlines()[-1].startswith("Error: some steps failed")


def test_the_report_is_copied(call, runner, tmp_path):
    result = call("run", "--report", "new/here.html", "patch")
    assert (tmp_path / "new" / "here.html").read_text() == "<html>"
    assert result.stderr.splitlines()[-1] == f"report: {Path('new/here.html')}"


def test_the_store_comes_from_option_then_environment(call, runner, tmp_path):
    env = {"BACKDOORKIT_STORE": "from-env"}
    call("run", "patch", env=env)
    call("run", "--store", "given", "patch", env=env)
    assert [call[2].root.name for call in runner.calls] == ["from-env", "given"]


def test_a_dry_run_touches_nothing(call, tmp_path):
    assert call("run", "--dry-run", "patch").exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_quiet_shows_neither_warnings_nor_progress(call, runner):
    result = call("-q", "run", "patch")
    assert "a warning" not in result.stderr
    from backdoorkit._progress import SILENT

    assert runner.calls[0][3] is SILENT


def test_unusable_plugins_are_one_line_of_warning_each(call, runner, registry):
    from backdoorkit.hooks.registry import PluginRecord, PluginState

    record = PluginRecord(
        name="bad", module="bad", distribution="d", version="1", state=PluginState.BROKEN, error="E"
    )
    registry._plugins.append(record)
    assert "warning: plugin 'bad' (d 1) is broken: E\n" in call("run", "patch").stderr


def test_logging_is_as_before_after_a_command(call, runner):
    before = logging.getLogger().level, list(logging.getLogger().handlers)
    call("-vv", "run", "patch")
    assert (logging.getLogger().level, list(logging.getLogger().handlers)) == before
