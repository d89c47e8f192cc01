"""Steps side by side in worker processes: the same bits, and nothing lost when a worker dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backdoorkit import hookimpl
from backdoorkit.errors import ConfigError, InputError
from backdoorkit.hooks.registry import Registry, load_registry
from backdoorkit.pipeline.recipe import Recipe
from backdoorkit.pipeline.runner import RunResult, run_recipe
from backdoorkit.pipeline.store import Store


@pytest.fixture
def registry(installed: Path) -> Registry:
    return load_registry(allow=("toy", "mortal"))


class Progress:
    """Remembers the loops that were shown, and that none stayed open."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.open: set[int] = set()

    def start(self, label: str, total: int | None) -> int:
        self.labels.append(label)
        self.open.add(len(self.labels))
        return len(self.labels)

    def advance(self, task: int, amount: int = 1) -> None:
        assert task in self.open

    def finish(self, task: int) -> None:
        self.open.remove(task)


@pytest.fixture
def progress() -> Progress:
    return Progress()


@pytest.fixture
def run(
    recipe: Callable[..., Recipe], registry: Registry, progress: Progress
) -> Callable[..., RunResult]:
    def start(store: Path, **changes: Any) -> RunResult:
        chosen = recipe(threads=1, **changes)
        return run_recipe(chosen, registry, Store(store), progress=progress)

    return start


def models(store: Path) -> dict[str, bytes]:
    paths = store.glob("artifacts/*/*/model.safetensors")
    return {str(path.relative_to(store)): path.read_bytes() for path in paths}


def numbers(result: RunResult) -> dict[tuple[str, str], Any]:
    rows = result.table.rows
    return {(row.attack, row.defense): [cell.metrics for cell in row.cells] for row in rows}


def test_two_jobs_end_with_the_bits_of_one(run: Callable[..., RunResult], tmp_path: Path) -> None:
    grid = {
        "seeds": [0, 1],
        "attacks": [{"name": "toy-attack"}, {"name": "none"}],
        "defenses": [{"name": "toy-defense"}, {"name": "toy-defense", "behavior": "raise"}],
        "detectors": [{"name": "toy-detector"}],
    }
    one = run(tmp_path / "one", **grid)
    two = run(tmp_path / "two", jobs=2, **grid)
    assert len(models(tmp_path / "one")) == 8
    assert models(tmp_path / "two") == models(tmp_path / "one")
    assert numbers(two) == numbers(one)
    assert list(two.run.results) == [step.key for step in two.run.plan.steps]
    assert two.directory.name == one.directory.name
    assert [row.errors for row in two.table.rows] == [row.errors for row in one.table.rows]
    (kept, _, _, _) = sorted((two.directory / "errors").iterdir())
    assert 'raise RuntimeError("something' in kept.read_text()


def test_a_step_whose_worker_dies_is_made_by_another(
    run: Callable[..., RunResult],
    mortal: Callable[..., dict[str, Any]],
    progress: Progress,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    defenses = [mortal("mortal", "a", deaths=1), mortal("mortal", "b", deaths=2)]
    executor = {"name": "processes", "retries": 1}
    result = run(tmp_path / "store", executor=executor, jobs=1, defenses=defenses)
    assert "killed by signal 9" in caplog.text
    victim, a, b = result.table.rows
    assert victim.errors == a.errors == ()
    (error,) = b.errors
    assert re.search(r"killed by signal 9 .* \(2 times; .*executor\.retries", error)
    assert result.failed
    assert progress.open == set()


def test_everything_in_the_store_needs_no_worker(
    run: Callable[..., RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path / "store")
    monkeypatch.setattr(subprocess, "Popen", None)
    again = run(tmp_path / "store", jobs=2)
    assert numbers(again) == numbers(first)
    assert all(result.reused for result in again.run.results.values())


def test_wrappers_see_every_step_here_and_never_two_at_once_and_progress_is_shown(
    run: Callable[..., RunResult],
    mortal: Callable[..., dict[str, Any]],
    registry: Registry,
    progress: Progress,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[str] = []
    inside: list[str] = []
    overlapping: set[str] = set()

    class Watcher:
        @hookimpl(wrapper=True)
        def backdoorkit_step(self, run: Any, step: Any) -> Iterator[None]:
            assert not inside
            inside.append(step.label)
            time.sleep(0.01)
            seen.append(f"begin {step.key}")
            inside.clear()
            result = yield
            assert not inside
            if seen[-1] != f"begin {step.key}":
                overlapping.add(step.kind.value)
            seen.append(f"end {step.key}")
            return result

    registry.register(Watcher(), name="watcher")
    defenses = [mortal("mortal", str(number), seconds=0.3) for number in range(2)]
    result = run(tmp_path / "store", jobs=2, defenses=defenses)
    assert not result.failed
    keys = [step.key for step in result.run.plan.steps]
    assert sorted(seen) == sorted(f"{when} {key}" for key in keys for when in ("begin", "end"))
    assert "repaired" in overlapping
    shown = capsys.readouterr()
    assert shown.err.count("a method writes to standard output\n") == 2
    assert shown.out == ""
    assert {"victim: training", "mortal: working"} <= set(progress.labels)
    assert progress.open == set()


def test_an_attack_that_cannot_be_made_ends_the_run_before_anything_is_trained(
    run: Callable[..., RunResult], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="target"):
        run(tmp_path / "store", jobs=2, attacks=[{"name": "toy-attack", "target": 99}])
    assert not (tmp_path / "store" / "artifacts" / "victim").exists()


def test_methods_of_this_process_alone_are_refused(
    run: Callable[..., RunResult],
    mortal: Callable[..., dict[str, Any]],
    registry: Registry,
    tmp_path: Path,
) -> None:
    import mortal_methods

    registry.unregister("mortal")
    registry.register(mortal_methods, name="here")
    with pytest.raises(InputError, match="defense:mortal was registered in this process"):
        run(tmp_path / "store", jobs=2, defenses=[mortal("mortal", "mortal")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"jobs": 0}, "jobs: must be at least 1"),
        ({"jobs": 2, "executor": "in-process"}, "one step at a time, and jobs is 2"),
        ({"executor": "proceses"}, "did you mean 'processes'"),
        ({"executor": {"name": "processes", "retry": 1}}, "did you mean 'retries'"),
        ({"executor": {"retries": 1}}, r"executor\.retries: unknown key"),
        ({"executor": 3}, r"executor\.name: must be text, not 3"),
    ],
)
def test_what_cannot_be_is_refused(
    run: Callable[..., RunResult], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "store", **changes)


def test_where_steps_run_survives_toml(registry: Registry, tmp_path: Path) -> None:
    values = {
        "attacks": [{"name": "none"}],
        "data": {"name": "toy-data"},
        "model": {"name": "toy-network"},
        "metrics": [{"name": "toy-metric"}],
        "jobs": 3,
    }
    recipe = Recipe.from_mapping(values, registry)
    assert recipe.executor.name == "processes"
    options = {**values, "executor": {"retries": 2}}
    assert Recipe.from_mapping(options, registry) == recipe
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())
    assert Recipe.from_file(path, registry) == recipe
    path.write_text(recipe.to_toml().replace("retries = 2", "retries = 5"))
    assert Recipe.from_file(path, registry).executor.config.retries == 5


COMMAND = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from backdoorkit.cli import main
main()
"""

RECIPE = """
device = "cpu"
data = {name = "toy-data", reserve_size = 32}
model.name = "toy-network"
train = {epochs = 1, batch_size = 32}
metrics = [{name = "toy-metric"}]
attacks = [{name = "toy-attack"}]
[[defenses]]
name = "mortal"
life = "life"
seconds = 60
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_stops_the_workers_and_leaves_nothing_half_written(
    installed: Path, tmp_path: Path, kind: signal.Signals, code: int
) -> None:
    (tmp_path / "life").mkdir()
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    options = ["-f", str(recipe), "--jobs", "2", "--store", str(tmp_path / "store")]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(installed), "--plugins", "toy,mortal", "run", *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "MORTAL_FOLDER": str(tmp_path)},
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (working := list((tmp_path / "life").glob("working-*"))):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # A terminal sends it to all processes.
    os.killpg(process.pid, kind)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code
    assert "interrupted; run the same command again to go on" in err
    assert "Traceback" not in err
    worker = int(working[0].name.removeprefix("working-"))
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    assert list((tmp_path / "store" / "drafts").iterdir()) == []
