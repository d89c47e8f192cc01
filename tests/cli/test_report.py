"""``backdoorkit report``: what is written where, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import sys

import pytest
from click.testing import CliRunner

from backdoorkit import PublishedTable, hookimpl
from backdoorkit.cli import cli
from backdoorkit.hooks.registry import Registry
from backdoorkit.pipeline.results import Cell, Row, Table

FIGURES = """
source = "Them (Venue 2020), Table 1"
setting = "another network"
columns = ["ACC"]
[figures.badnets]
ft = [90.0]
"""


class Papers:
    @staticmethod
    @hookimpl
    def backdoorkit_published_tables():
        yield PublishedTable(name="their-table1", resource="their_papers:table1.toml")


@pytest.fixture
def registry(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "their_papers").mkdir()
    (tmp_path / "their_papers" / "__init__.py").touch()
    (tmp_path / "their_papers" / "table1.toml").write_text(FIGURES)
    made = Registry()
    made.register(Papers)
    yield made
    sys.modules.pop("their_papers", None)


@pytest.fixture
def run_folder(tmp_path):
    return write_run(tmp_path, "toy-0a1b2c3d")


def write_run(tmp_path, name, seed=0, acc=0.5, **recipe):
    metrics = {"ACC": {"value": acc}}
    cells = (Cell(seed=seed, metrics=metrics),)
    names = {"data": "digits", "model": "small-cnn", "attack": "badnets", "defense": "ft"}
    folder = tmp_path / "store" / "runs" / name
    folder.mkdir(parents=True)
    made = Table(columns=("ACC",), rows=(Row(**names, cells=cells),))
    (folder / "table.json").write_text(json.dumps(made.to_json()))
    record = {"name": name.rpartition("-")[0], "started": "2026", "steps": [], "recipe": recipe}
    (folder / "record.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def call(registry, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*args):
        given = ["report", "--store", str(tmp_path / "store"), *args]
        return CliRunner().invoke(cli, given, obj={"registry": lambda: registry})

    return call


def test_html_without_a_file_renews_the_run_s_own_report(call, run_folder):
    done = call("toy")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == f"report: {run_folder / 'report.html'}\n"
    assert (run_folder / "report.html").read_text().startswith("<!doctype html>")
    assert call("toy").exit_code == 0


def test_other_formats_are_printed(call, run_folder):
    assert call("toy", "--format", "md").stdout.startswith("# toy\n")
    assert next(csv.reader(io.StringIO(call("toy", "--format", "csv").stdout)))[0] == "attack"
    assert json.loads(call("toy", "--format", "json").stdout)["rows"][0]["mean"] == {"ACC": 0.5}
    assert r"\toprule" in call("toy", "--format", "latex").stdout
    assert sorted(path.name for path in run_folder.iterdir()) == ["record.json", "table.json"]


@pytest.mark.parametrize(
    ("name", "start"),
    [("a.html", "<!doctype"), ("a.md", "# toy"), ("a.csv", "attack,"), ("a.tex", "% toy")],
)
def test_the_name_of_the_file_tells_the_format(call, run_folder, tmp_path, name, start):
    assert call("toy", "-o", name).exit_code == 0
    assert (tmp_path / name).read_text().startswith(start)


def test_a_file_that_is_there_is_replaced_only_by_force(call, run_folder, tmp_path):
    (tmp_path / "a.md").write_text("mine")
    done = call("toy", "-o", "a.md")
    assert (done.exit_code, (tmp_path / "a.md").read_text()) == (2, "mine")
    assert done.stderr == "Error: a.md is there already; replace it with --force\n"
    assert call("toy", "-o", "a.md", "--force").exit_code == 0
    assert (tmp_path / "a.md").read_text() != "mine"


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["tyo"], "did you mean 'toy'?"),
        (["toy", "--published", "their-tabel1"], "did you mean 'their-table1'?"),
        (["toy", "-o", "a.doc"], "tells no format"),
        (["toy", "-o", "nowhere/a.md"], "there is no folder"),
        (["toy", "--format", "md", "--section", "verdicts"], "they have: results"),
        (["toy", "--section", "results"], "--section is for md, csv and latex"),
        (["toy", "toy"], "the same run is given twice"),
        (["toy", "--format", "pdf"], "is not one of"),
        (["--format", "md"], "Missing argument 'RUN...'"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_and_nothing_is_written(
    call, run_folder, tmp_path, args, problem
):
    before = sorted(tmp_path.rglob("*"))
    done = call(*args)
    assert done.exit_code == 2
    assert problem in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_html_of_several_runs_needs_a_place(call, run_folder, tmp_path):
    write_run(tmp_path, "other-00000000", seed=1)
    assert "say with -o where" in call("toy", "other").stderr
    done = call("toy", "other", "-o", "both.html")
    assert done.exit_code == 0
    assert "toy + other" in (tmp_path / "both.html").read_text()


def test_a_failed_write_leaves_nothing(call, run_folder, tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    done = call("toy", "-o", "a.md")
    assert done.exit_code == 2
    assert "cannot be written to a.md: No space left on device" in done.stderr
    assert not list(tmp_path.glob("*a.md*"))


def test_published_figures_come_from_the_option_or_from_the_recipe(call, run_folder, tmp_path):
    asked = call("toy", "--published", "their-table1", "--format", "md").stdout
    assert "| badnets | ft | 50.00 | 90.00 (−40.00) |" in asked
    write_run(tmp_path, "named-00000000", published=["their-table1", "gone-table"])
    named = call("named", "--format", "md")
    assert "90.00 (−40.00)" in named.stdout
    assert "warning: no table of published figures is called 'gone-table'" in named.stderr


def test_published_tables_are_listed_with_their_source(call):
    lines = call("--list-published").stdout.splitlines()
    assert lines[0].startswith("their-table1  (plugin Papers")
    assert lines[1:] == [
        "    Them (Venue 2020), Table 1",
        "    another network",
        "    1 rows: ACC",
    ]
