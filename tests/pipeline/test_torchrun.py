"""Victims trained by several processes together: as one would, and nothing lost when one dies."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from backdoorkit._progress import SILENT
from backdoorkit.errors import ConfigError, InputError
from backdoorkit.hooks.registry import Registry, load_registry
from backdoorkit.pipeline.recipe import Recipe
from backdoorkit.pipeline.runner import RunResult, run_recipe
from backdoorkit.pipeline.store import Store
from backdoorkit.pipeline.victims import can_be_shared

TWO = {"name": "torchrun", "processes": 2}


@pytest.fixture
def registry(installed: Path) -> Registry:
    return load_registry(allow=("toy", "mortal"))


@pytest.fixture
def run(recipe: Callable[..., Recipe], registry: Registry) -> Callable[..., RunResult]:
    def start(store: Path, **changes: Any) -> RunResult:
        chosen = recipe(threads=1, **changes)
        return run_recipe(chosen, registry, Store(store), progress=SILENT)

    return start


def training(result: RunResult, number: int = 0) -> dict[str, Any]:
    victim = result.run.results[result.run.plan.entries[number].victim.key].artifact
    assert victim is not None
    facts: dict[str, Any] = victim.facts["training"]
    return facts


def test_two_processes_train_what_one_would(run: Callable[..., RunResult], tmp_path: Path) -> None:
    attacks = [{"name": "toy-attack"}, {"name": "none"}]
    alone = run(tmp_path / "alone", attacks=attacks)
    shared = run(tmp_path / "shared", attacks=attacks, executor=TWO)
    assert not shared.failed
    for number in range(2):
        one, two = training(alone, number), training(shared, number)
        assert two["processes"] == 2
        assert "processes" not in one
        for mine, theirs in zip(one["history"], two["history"], strict=True):
            assert math.isclose(mine["loss"], theirs["loss"], rel_tol=1e-4)
            assert mine["accuracy"] == pytest.approx(theirs["accuracy"], abs=0.02)
    keys = [step.key for step in alone.run.plan.steps]
    assert [step.key for step in shared.run.plan.steps] == keys


def test_a_training_one_of_whose_processes_dies_is_made_by_others(
    run: Callable[..., RunResult],
    mortal: Callable[..., dict[str, Any]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    result = run(
        tmp_path / "store", executor=TWO, model=mortal("mortal-network", "life", 1, rank="1")
    )
    assert not result.failed
    assert re.search("its worker process .*trying it again", caplog.text)
    assert "Traceback" not in capfd.readouterr().err
    assert list((tmp_path / "store" / "drafts").iterdir()) == []


def test_an_error_of_the_leader_is_told_and_the_next_training_has_a_fresh_team(
    run: Callable[..., RunResult], mortal: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    network = mortal("mortal-network", "life", 1, rank="0", by_error=True)
    result = run(tmp_path / "store", executor=TWO, model=network, seeds=[0, 1])
    first, second = result.table.rows[0].cells
    assert "no memory is left" in str(first.error)
    assert second.error is None


def test_an_error_of_another_process_is_told(
    run: Callable[..., RunResult],
    mortal: Callable[..., dict[str, Any]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    network = mortal("mortal-network", "life", 1, rank="1", by_error=True)
    result = run(tmp_path / "store", executor=TWO | {"retries": 0}, model=network)
    assert result.failed
    shown = capfd.readouterr().err
    assert "process 1 of the team failed: RuntimeError: no memory is left" in shown
    assert "Traceback" not in shown


def test_a_loss_that_is_not_finite_fails_the_cell(
    run: Callable[..., RunResult], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train = {"epochs": 3, "batch_size": 32, "learning_rate": 1e30, "precision": "float32"}
    result = run(tmp_path / "store", executor=TWO, train=train)
    (error,) = result.table.rows[0].errors
    assert "training diverged" in error
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"jobs": 2}, "leave jobs = 2 out"),
        ({"train": {"compile": True}}, r"leave train\.compile out"),
        ({"device": "cuda:1"}, "a GPU of its own"),
        ({"executor": "torchrun"}, r"say how many .*executor\.processes"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    run: Callable[..., RunResult],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    changes: dict[str, Any],
    message: str,
) -> None:
    # With a GPU that is not there, the run would be refused before.
    monkeypatch.setattr(
        "backdoorkit.pipeline.runner.chosen_device", lambda chosen: torch.device("cpu")
    )
    with pytest.raises(InputError, match=message):
        run(tmp_path / "store", **{"executor": TWO, **changes})
    assert not (tmp_path / "store" / "artifacts").exists()


def test_a_team_of_one_is_none(run: Callable[..., RunResult], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="processes: must be at least 2"):
        run(tmp_path / "store", executor={"name": "torchrun", "processes": 1})


def test_only_plain_trainings_of_victims_can_be_shared(
    run: Callable[..., RunResult], tmp_path: Path
) -> None:
    attacks = [{"name": "toy-attack"}, {"name": "toy-attack", "index_policy": "per-batch"}]
    result = run(tmp_path / "store", attacks=attacks, train={"epochs": 0})
    (shared,) = filter(can_be_shared, result.run.plan.steps)
    assert shared.key == result.run.plan.entries[0].victim.key
