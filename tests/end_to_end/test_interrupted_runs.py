"""A sweep that is killed at random moments and started again ends with the same bits."""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

RECIPE = """
name = "killed"
seeds = [0, 1]
device = "cpu"
threads = 1
[data]
name = "digits"
train_size = 600
test_size = 200
reserve_size = 60
[model]
name = "small-cnn"
width = 8
[train]
epochs = 6
batch_size = 64
[[attacks]]
name = "badnets"
[[attacks]]
name = "blended"
[[defenses]]
name = "ft"
epochs = 2
[[defenses]]
name = "tsbd"
epochs = 2
neuron_ratio = 0.3
"""

#: Imports what takes long once, then forks for every run: so many starts would take minutes.
STARTER = """
import json, os, sys
import matplotlib.figure, torch._dynamo
import backdoorkit.pipeline.runner, backdoorkit.report.html
from backdoorkit.cli import main
for line in sys.stdin:
    *argv, log = json.loads(line)
    process = os.fork()
    if process == 0:
        for number, path in ((0, os.devnull), (1, log), (2, log)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
        sys.argv = ["backdoorkit", *argv]
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""

pytestmark = [
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for worker processes in /proc"),
    pytest.mark.skipif(
        any(
            importlib.util.find_spec(f"backdoorkit_{name}") is None
            for name in ("badnets", "blended", "ft", "tsbd", "metrics")
        ),
        reason="needs the plugins badnets, blended, ft, tsbd and metrics",
    ),
]


class Starter:
    """Starts runs, one at a time."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._log = folder / "log.txt"
        self._recipe = folder / "killed.toml"
        self._recipe.write_text(RECIPE)

    def start(self, store: Path, *options: str) -> int:
        """Start a run and return its process's number."""
        assert self._process.stdin is not None
        argv = ["run", "-f", str(self._recipe), "--store", str(store), *options, str(self._log)]
        self._process.stdin.write(json.dumps(argv) + "\n")
        self._process.stdin.flush()
        return int(self._answer())

    def end(self) -> int:
        """Wait for the run to end; its exit code, or minus the signal that ended it."""
        return int(self._answer())

    def finish(self, store: Path) -> None:
        """Carry out a run undisturbed."""
        self.start(store)
        assert self.end() == 0, self._log.read_text()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    with subprocess.Popen(
        [sys.executable, "-c", STARTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        yield Starter(process, tmp_path_factory.mktemp("starter"))


@pytest.fixture(scope="module")
def undisturbed(starter: Starter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with all results."""
    store = tmp_path_factory.mktemp("undisturbed")
    starter.finish(store)
    return store


def results(store: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Metrics of every cell, and every stored model's bytes by artifact."""
    table = json.loads(next(store.glob("runs/*/table.json")).read_text())
    rows = {
        f"{row['attack']} {row['defense']}": [
            {"seed": cell["seed"], "metrics": cell["metrics"]} for cell in row["seeds"]
        ]
        for row in table["rows"]
    }
    models = {
        str(path.relative_to(store)): path.read_bytes()
        for path in store.glob("artifacts/*/*/model.safetensors")
    }
    return rows, models


def assert_same(store: Path, expected: Path) -> None:
    rows, models = results(store)
    expected_rows, expected_models = results(expected)
    assert rows == expected_rows
    assert len(rows) == 6
    assert models.keys() == expected_models.keys()
    assert len(models) == 12
    assert models == expected_models
    assert list((store / "drafts").iterdir()) == []


def a_worker(process: int) -> int:
    """The newest process that ``process`` has started; waits until there is one."""
    while True:
        children = Path(f"/proc/{process}/task").glob("*/children")
        if numbers := [int(number) for path in children for number in path.read_text().split()]:
            return max(numbers)
        time.sleep(0.01)


class Moments:
    """Ten random moments of a sweep: when so many of its 42 steps are done, and a little later."""

    def __init__(self, seed: int, store: Path) -> None:
        self._draw = random.Random(seed)
        self._steps = sorted(self._draw.sample(range(1, 37), 10))
        self._done = f"{store}/artifacts/*/*/manifest.json"

    def wait(self, process: int) -> None:
        """Wait for the next moment, which a run that goes on must reach."""
        wanted = self._steps.pop(0)
        while len(glob.glob(self._done)) < wanted:
            os.kill(process, 0)
            time.sleep(0.01)
        time.sleep(self._draw.uniform(0, 0.2))


def test_ten_kills_change_nothing(starter: Starter, undisturbed: Path, tmp_path: Path) -> None:
    process, moments = starter.start(tmp_path), Moments(0, tmp_path)
    for _ in range(10):
        moments.wait(process)
        os.kill(process, signal.SIGKILL)
        assert starter.end() == -signal.SIGKILL
        process = starter.start(tmp_path)
    assert starter.end() == 0
    assert_same(tmp_path, undisturbed)


def test_ten_kills_of_runs_and_of_workers_with_two_jobs_change_nothing(
    starter: Starter, undisturbed: Path, tmp_path: Path
) -> None:
    options = ("--jobs", "2", "--set", "executor.retries=9")
    process, moments = starter.start(tmp_path, *options), Moments(1, tmp_path)
    for number in range(10):
        moments.wait(process)
        if number not in (2, 6):  # a new run takes seconds to start new workers
            os.kill(a_worker(process), signal.SIGKILL)  # the run goes on
            continue
        os.kill(process, signal.SIGKILL)  # its workers end by themselves
        assert starter.end() == -signal.SIGKILL
        process = starter.start(tmp_path, *options)
    assert starter.end() == 0
    assert_same(tmp_path, undisturbed)


def test_a_second_call_makes_nothing_again(starter: Starter, undisturbed: Path) -> None:
    store = undisturbed
    before = {path: path.stat().st_mtime_ns for path in store.glob("artifacts/*/*")}
    table = next(store.glob("runs/*/table.json")).read_text()
    starter.finish(store)
    assert next(store.glob("runs/*/table.json")).read_text() == table
    after = {path: path.stat().st_mtime_ns for path in store.glob("artifacts/*/*")}
    assert after == before
