"""Runs of toy methods: what surrounds methods is tested without any real one."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from backdoorkit.context import Progress
from backdoorkit.hooks.registry import Registry, load_registry
from backdoorkit.pipeline.recipe import Recipe
from backdoorkit.pipeline.runner import RunResult, run_recipe
from backdoorkit.pipeline.store import Store

INSTALLED = ("toy", "mortal")


class Silent:
    """Progress that nobody sees."""

    def start(self, label: str, total: int | None) -> int:
        return 0

    def advance(self, task: int, amount: int = 1) -> None: ...

    def finish(self, task: int) -> None: ...


@pytest.fixture(scope="session")
def toy() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location(
        "toy_methods", Path(__file__).with_name("toy_methods.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["toy_methods"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["toy_methods"]


@pytest.fixture
def registry(toy: ModuleType) -> Registry:
    toy.CALLS.clear()
    registry = load_registry(entry_points=())
    registry.register(toy, name="toy")
    return registry


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def recipe(registry: Registry) -> Callable[..., Recipe]:
    """Make a recipe over the toys; keyword arguments replace its tables."""

    def make(**changes: Any) -> Recipe:
        values: dict[str, Any] = {
            "data": {"name": "toy-data", "reserve_size": 32},
            "model": {"name": "toy-network"},
            "train": {"epochs": 2, "batch_size": 32, "precision": "float32"},
            "attacks": [{"name": "toy-attack"}],
            "metrics": [{"name": "toy-metric"}],
            "device": "cpu",
            **changes,
        }
        return Recipe.from_mapping(values, registry)

    return make


@pytest.fixture
def run(registry: Registry, store: Store) -> Callable[[Recipe], RunResult]:
    progress: Progress = Silent()
    return lambda recipe: run_recipe(recipe, registry, store, progress=progress)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The toys, installed as plugins that a worker process finds too."""
    folder = tmp_path_factory.mktemp("installed")
    for name in INSTALLED:
        shutil.copy(Path(__file__).with_name(f"{name}_methods.py"), folder)
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[backdoorkit]\n{name} = {name}_methods\n")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in INSTALLED:
        module = sys.modules.get(f"{name}_methods")
        # Other tests have a module of that name from elsewhere.
        if module is not None and Path(str(module.__file__)).parent == folder:
            del sys.modules[module.__name__]


@pytest.fixture
def mortal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A method of ``mortal_methods`` whose process dies so many times before it lives."""
    monkeypatch.setenv("MORTAL_FOLDER", str(tmp_path))

    def make(name: str, life: str, deaths: int = 0, **options: Any) -> dict[str, Any]:
        (tmp_path / life).mkdir()
        for number in range(deaths):
            (tmp_path / life / f"death-{number}").touch()
        return {"name": name, "life": life, **options}

    return make
