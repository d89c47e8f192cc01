"""The recipes of this repository are recipes, at every scale they have."""

from __future__ import annotations

import functools
import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from backdoorkit.cli import cli
from backdoorkit.hooks.registry import Registry, load_registry
from backdoorkit.pipeline.recipe import Recipe
from backdoorkit.pipeline.scales import scales_of

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "recipes").glob("*.toml"))
BENCHMARKS = (ROOT / "docs" / "benchmarks" / "README.md").read_text(encoding="utf-8")
#: The seeds' experiments, each with a scale for two cores and one of a minute.
EXPERIMENTS = [file for file in FILES if re.match(r"tsbd-|tnd-|abl-(?!cifar10)", file.name)]


@functools.cache
def registry() -> Registry:
    return load_registry()


def values(file: Path) -> dict[str, object]:
    return tomllib.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("file", "scale"),
    [(file, scale) for file in FILES for scale in scales_of(values(file))],
    ids=lambda value: value.stem if isinstance(value, Path) else value,
)
def test_every_recipe_is_valid_at_every_scale_and_reads_back_equal(file: Path, scale: str) -> None:
    recipe = Recipe.from_file(file, registry(), scale)
    assert recipe.name == (file.stem if scale == "full" else f"{file.stem}-{scale}")
    written = tomllib.loads(recipe.to_toml())
    assert Recipe.from_mapping(written, registry(), file.parent) == recipe


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_the_experiments_have_scales_for_two_cores_and_for_a_minute(file: Path) -> None:
    assert scales_of(values(file)) == ("full", "smoke", "cpu")
    sizes = [
        Recipe.from_file(file, registry(), scale).data[0].options.train_size or 10**9
        for scale in ("smoke", "cpu", "full")
    ]
    assert sizes[0] <= 1000 < sizes[1] <= 20_000 < sizes[2]


def test_there_are_the_experiments() -> None:
    assert len(EXPERIMENTS) >= 13


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_recipe_is_listed(file: Path) -> None:
    assert f"`{file.name}`" in BENCHMARKS


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("abl-table", {"attacks": 11, "defenses": 5}),
        ("abl-turning-epoch", {"attacks": 4, "defenses": 5}),
        ("abl-stress", {"attacks": 8, "defenses": 2}),
        ("abl-unlearning-methods", {"attacks": 1, "defenses": 21}),
        ("abl-loss-curves", {"attacks": 9, "analyses": 1}),
        ("tsbd-table1", {"attacks": 8, "defenses": 9}),
        ("tsbd-table1-backdoorbench", {"attacks": 8, "defenses": 9}),
        ("tsbd-observations", {"attacks": 8, "analyses": 3}),
        ("tnd-detection", {"attacks": 5, "detectors": 3, "seeds": 10}),
    ],
)
def test_the_experiments_are_as_large_as_the_papers(name: str, count: dict[str, int]) -> None:
    recipe = Recipe.from_file(ROOT / "recipes" / f"{name}.toml", registry())
    assert {key: len(getattr(recipe, key)) for key in count} == count


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Noisy stripes of ten kinds, in the layout of Hugging Face image data sets."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    files = {}
    for split, count in (("train", 600), ("test", 200)):
        labels = np.arange(count) % 10
        waves = np.sin(np.arange(32) * (labels[:, None] + 1) / 5)
        noise = random.normal(0, 20, (count, 32, 32, 3))
        pixels = (127 + 60 * waves[:, None, :, None] + noise).clip(0, 255).astype(np.uint8)
        features = datasets.Features(
            {
                "img": datasets.Image(),
                "label": datasets.ClassLabel(names=[f"stripes {n}" for n in range(10)]),
            }
        )
        rows = {"img": [Image.fromarray(p) for p in pixels], "label": labels.tolist()}
        files[split] = folder / f"{split}.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(files[split]))
    return files


@pytest.mark.slow
@pytest.mark.parametrize("name", ["abl-gamma", "tsbd-observations", "tnd-detection"])
def test_the_smallest_scale_runs_without_a_failing_cell(
    name: str, pictures: dict[str, Path], tmp_path: Path
) -> None:
    file = ROOT / "recipes" / f"{name}.toml"
    given = [f"--set=data.{split}_files={path}" for split, path in pictures.items()]
    arguments = ["--scale", "smoke", "--threads", "1", "--device", "cpu", "--json", *given]
    result = CliRunner().invoke(
        cli, ["-q", "run", "-f", str(file), "--store", str(tmp_path), *arguments]
    )
    assert result.exit_code == 0, result.output
    table = json.loads(result.stdout)
    assert table["failed"] is False
    assert table["rows"]
