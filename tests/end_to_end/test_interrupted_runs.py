"""A run that is killed at any moment and started again ends with the same bits."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

RECIPE = """
name = "killed"
device = "cpu"
[data]
name = "digits"
reserve_size = 60
[model]
name = "small-cnn"
width = 8
[train]
epochs = 6
batch_size = 64
[[attacks]]
name = "badnets"
[[defenses]]
name = "ft"
epochs = 2
[[defenses]]
name = "tsbd"
epochs = 2
neuron_ratio = 0.3
"""

needs_plugins = pytest.mark.skipif(
    any(
        importlib.util.find_spec(f"backdoorkit_{name}") is None
        for name in ("badnets", "ft", "tsbd", "metrics")
    ),
    reason="needs the plugins badnets, ft, tsbd and metrics",
)


def start(recipe: Path, store: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "backdoorkit", "run", "-f", str(recipe), "--store", str(store)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(recipe: Path, store: Path) -> str:
    process = start(recipe, store)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


def results(store: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Metrics of every row, and every stored model's bytes by artifact."""
    table = json.loads(next(store.glob("runs/*/table.json")).read_text())
    rows = {row["defense"]: row["mean"] for row in table["rows"]}
    models = {
        str(path.relative_to(store)): path.read_bytes()
        for path in store.glob("artifacts/*/*/model.safetensors")
    }
    return rows, models


@needs_plugins
def test_killed_runs_end_with_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    recipe = tmp_path / "killed.toml"
    recipe.write_text(RECIPE)
    began = time.monotonic()
    finish(recipe, tmp_path / "undisturbed")
    seconds = time.monotonic() - began

    for share in (0.45, 0.6, 0.75, 0.9):
        process = start(recipe, tmp_path / "killed")
        time.sleep(seconds * share)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(recipe, tmp_path / "killed")

    rows, models = results(tmp_path / "killed")
    expected_rows, expected_models = results(tmp_path / "undisturbed")
    assert rows == expected_rows
    assert models.keys() == expected_models.keys()
    assert len(models) == 3
    assert models == expected_models
    assert list((tmp_path / "killed" / "drafts").iterdir()) == []


@needs_plugins
def test_a_second_call_makes_nothing_again(tmp_path: Path) -> None:
    recipe = tmp_path / "again.toml"
    recipe.write_text(RECIPE)
    first = finish(recipe, tmp_path / "store")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("store/artifacts/*/*")}
    assert finish(recipe, tmp_path / "store") == first
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("store/artifacts/*/*")}
    assert after == before
