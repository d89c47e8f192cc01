"""Runs on a small Ray cluster of this machine: the same bits, and nothing lost with a worker."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import sys
import time
from pathlib import Path

import pytest

from backdoorkit import hookimpl
from backdoorkit.errors import InputError
from backdoorkit.hooks.registry import load_registry
from backdoorkit.pipeline.recipe import Recipe
from backdoorkit.pipeline.runner import run_recipe
from backdoorkit.pipeline.store import Store
from backdoorkit_ray import RayOptions
from backdoorkit_ray._executor import RayExecutor

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray, which is not installed"
)


class Progress:
    """Remembers the loops that were shown."""

    def __init__(self):
        self.labels = []
        self.open = set()

    def start(self, label, total):
        self.labels.append(label)
        self.open.add(len(self.labels))
        return len(self.labels)

    def advance(self, task, amount=1):
        assert task in self.open

    def finish(self, task):
        self.open.remove(task)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The plugin of the tests, installed so that workers find it."""
    folder = tmp_path_factory.mktemp("installed")
    shutil.copy(Path(__file__).with_name("fragile.py"), folder)
    info = folder / "fragile-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fragile\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[backdoorkit]\nfragile = fragile\n")
    before = os.environ.get("PYTHONPATH", "")
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [before])])
    os.environ["FRAGILE_FOLDER"] = str(folder)
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("fragile", None)
    os.environ["PYTHONPATH"] = before
    del os.environ["FRAGILE_FOLDER"]


@pytest.fixture(scope="module")
def cluster(installed):
    """One cluster for all tests, with workers that stay warm between them."""
    # Ray would put one into the home directory. It looks at this when it is imported.
    (installed / "token").write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(installed / "token")
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    yield ray
    ray.shutdown()
    del os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN_PATH"]


@pytest.fixture
def registry(installed):
    return load_registry(allow=["ray", "fragile"])


@pytest.fixture
def fragile(installed):
    def make(life, deaths=0, **options):
        shutil.rmtree(installed / life, ignore_errors=True)
        (installed / life).mkdir()
        for number in range(deaths):
            (installed / life / f"death-{number}").touch()
        return {"name": "fragile", "life": life, **options}

    return make


VALUES = {
    "data": {"name": "digits", "train_size": 200, "test_size": 100, "reserve_size": 40},
    "model": {"name": "small-cnn", "width": 4},
    "train": {"epochs": 1, "batch_size": 50},
    "attacks": [{"name": "corner"}, {"name": "none"}],
    "metrics": [{"name": "hits"}],
    "device": "cpu",
    "threads": 1,
}


def run(registry, store, progress=None, **changes):
    recipe = Recipe.from_mapping({**VALUES, **changes}, registry)
    return run_recipe(recipe, registry, Store(store), progress=progress or Progress())


def models(store):
    paths = store.glob("artifacts/*/*/model.safetensors")
    return {str(path.relative_to(store)): path.read_bytes() for path in paths}


def numbers(result):
    rows = result.table.rows
    return {(row.attack, row.defense): [cell.metrics for cell in row.cells] for row in rows}


# Ray's workers are nice: on a machine that does other things they get what is left.
@pytest.mark.timeout(900)
@needs_ray
def test_a_cluster_with_storage_ends_with_the_bits_of_this_process_though_workers_die(
    cluster, registry, fragile, tmp_path, caplog
):
    steps = []

    class Watcher:
        @hookimpl(wrapper=True)
        def backdoorkit_step(self, run, step):
            result = yield
            steps.append(step.key)
            return result

    here = run(registry, tmp_path / "here", defenses=[fragile("bits")])
    progress = Progress()
    executor = {
        "name": "ray",
        "storage": f"file://{tmp_path}/shared",
        "node_store": str(tmp_path / "node"),
        "retries": 1,
    }
    defenses = [fragile("bits", deaths=1, seconds=0.0)]
    registry.register(Watcher(), name="watcher")
    there = run(registry, tmp_path / "there", progress, defenses=defenses, executor=executor)
    assert not there.failed
    assert "its worker was lost; it is tried again" in caplog.text
    assert len(models(tmp_path / "here")) == 4
    assert models(tmp_path / "there") == models(tmp_path / "here")
    assert numbers(there) == numbers(here)
    assert models(tmp_path / "node").keys() == models(tmp_path / "here").keys()
    assert sorted(steps) == sorted(step.key for step in there.run.plan.steps)
    assert "victim: training" in progress.labels
    assert progress.open == set()


@needs_ray
def test_a_step_whose_workers_all_die_is_one_failed_cell(cluster, registry, fragile, tmp_path):
    defenses = [fragile("doomed", deaths=2), fragile("well")]
    values = {"executor": {"name": "ray", "retries": 1}, "attacks": [{"name": "none"}]}
    result = run(registry, tmp_path / "store", defenses=defenses, **values)
    victim, doomed, well = result.table.rows
    assert victim.errors == well.errors == ()
    (error,) = doomed.errors
    assert "its Ray worker was lost 2 times (WorkerCrashedError" in error


@needs_ray
def test_an_interrupt_cancels_the_tasks(cluster, registry, fragile, installed, tmp_path):
    defense = fragile("long", seconds=600)

    class Impatient(Progress):
        def start(self, label, total):
            if label == "fragile: working":
                raise KeyboardInterrupt
            return super().start(label, total)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(
            registry,
            tmp_path / "store",
            Impatient(),
            attacks=[{"name": "none"}],
            defenses=[defense],
            executor="ray",
        )
    assert time.monotonic() - began < 240
    assert list((tmp_path / "store" / "drafts").iterdir()) == []


@needs_ray
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": 1e6}, "no node of the cluster has place for 'poison digits .*GiB"),
        ({"cpus": 3}, "asks for 3 CPU"),
        ({"storage": "nosuch://there"}, "storage nosuch://there cannot be used"),
    ],
)
def test_what_the_cluster_has_no_place_for_is_refused(
    cluster, registry, tmp_path, options, message
):
    with pytest.raises(InputError, match=message):
        run(registry, tmp_path / "store", executor={"name": "ray", **options})


@needs_ray
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1 .*ray start --head"),
        ("somewhere", "HOST:PORT, ray://HOST:PORT or auto, not 'somewhere'"),
    ],
)
def test_an_address_where_nobody_answers_is_refused(registry, tmp_path, address, message):
    import ray

    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(InputError, match=message):
        run(registry, tmp_path / "store", executor={"name": "ray", "address": address})
    assert not (tmp_path / "store" / "artifacts").exists()


def test_without_ray_it_says_what_to_install(registry, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="needs Ray, which is not installed"):
        run(registry, tmp_path / "store", executor="ray")


def test_a_gpu_by_number_is_not_the_run_s_to_choose(registry, tmp_path):
    from backdoorkit.executing import WorkOrder

    order = WorkOrder(
        recipe={},
        store=str(tmp_path),
        device="cuda:1",
        threads=1,
        jobs=None,
        plugins=(),
        versions={},
    )
    with pytest.raises(InputError, match="Ray chooses the GPU"):
        RayExecutor(RayOptions()).open(order)
