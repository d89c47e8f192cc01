"""What is in the logs, read by TensorBoard's own reader."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from backdoorkit.hooks.registry import load_registry, resolve_config
from backdoorkit_tensorboard import TensorBoardConfig
from backdoorkit_tensorboard._observer import TensorBoard

HISTORY = [{"loss": 2.0, "accuracy": 0.25}, {"loss": 0.5, "accuracy": float("nan")}]
METRICS = {"ACC": {"value": 0.75}, "DER": {"value": None}}


class Artifact:
    """As a step leaves it in the store."""

    def __init__(self, folder, facts, metrics=None):
        self.folder, self.facts, self._metrics = folder, facts, metrics
        self.files = tuple(path.name for path in folder.iterdir())

    def file(self, name):
        return self.folder / name

    def read_json(self, name):
        assert name == "metrics.json"
        return self._metrics


@pytest.fixture
def run(tmp_path):
    """A run of one attack and two seeds, with the results that an observer is told of."""
    victim, folder = SimpleNamespace(key="v"), tmp_path / "artifact"
    folder.mkdir()
    clean = np.full((2, 3, 8, 8), 100, dtype=np.uint8)
    save_file({"clean": clean, "triggered": clean + 9}, folder / "samples.safetensors")
    names = {"data": "digits", "model": "small-cnn", "attack": "badnets + sig/x", "victim": victim}
    entries = [
        SimpleNamespace(
            **{**names, "defense": "no defense", "seed": 3, "model_step": victim},
            measure=SimpleNamespace(key="m"),
        ),
        SimpleNamespace(
            **{**names, "defense": "nc", "seed": 3, "model_step": victim}, measure=None
        ),
    ]
    table = SimpleNamespace(to_text=lambda: "attack   ACC\nbadnets  75.00")
    made = {
        "v": Artifact(folder, {"training": {"history": HISTORY}}),
        "m": Artifact(folder, {}, METRICS),
        "failed": None,
    }
    return SimpleNamespace(
        recipe=SimpleNamespace(to_toml=lambda: "[train]\nepochs = 2\n"),
        plan=SimpleNamespace(entries=entries),
        directory=tmp_path / "run-1a2b3c4d",
        table=table,
        done=[
            SimpleNamespace(step=SimpleNamespace(key=k), artifact=artifact)
            for k, artifact in made.items()
        ],
    )


def watch(run, config=None, error=None):
    observer = TensorBoard(config or TensorBoardConfig())
    observer.run_begin(run)
    for result in run.done:
        observer.step_end(run, result, 0.5)
    observer.run_end(run, error)


def series(folder: Path):
    """Readers by the name of the series."""
    found = {}
    for path in {events.parent for events in folder.rglob("events.out.tfevents.*")}:
        found[path.name] = EventAccumulator(str(path)).Reload()
    return found


def text(reader, tag):
    (event,) = reader.Tensors(f"{tag}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def test_curves_metrics_and_samples_of_a_victim_are_one_series(run):
    watch(run)
    found = series(run.directory / "tensorboard")
    assert sorted(found) == ["badnets-+-sig-x-seed-3", "run"]
    victim = found["badnets-+-sig-x-seed-3"]
    scalars = {
        tag: [(e.step, e.value) for e in victim.Scalars(tag)] for tag in victim.Tags()["scalars"]
    }
    assert scalars == {
        "training/loss": [(1, 2.0), (2, 0.5)],
        "training/accuracy": [(1, 0.25)],  # what is not a number is left out
        "ACC/no defense": [(0, 0.75)],
    }
    (sheet,) = victim.Images("samples")
    pixels = np.asarray(Image.open(io.BytesIO(sheet.encoded_image_string)))
    side = 8 * 8 + 4
    assert pixels.shape == (3 * side, 2 * side, 3)
    assert pixels[side + 20, 20].tolist() == [109, 109, 109]
    assert text(victim, "samples").startswith("as they are; triggered; ")


def test_recipe_and_table_are_text_of_the_whole_run(run):
    watch(run)
    whole = series(run.directory / "tensorboard")["run"]
    assert text(whole, "recipe") == "    [train]\n    epochs = 2"
    assert text(whole, "table").splitlines()[1] == "    badnets  75.00"


def test_a_run_that_ended_early_says_why(run):
    run.table = None
    watch(run, error=KeyboardInterrupt("now"))
    whole = series(run.directory / "tensorboard")["run"]
    assert text(whole, "error") == "    KeyboardInterrupt: now"
    assert "table/text_summary" not in whole.Tags()["tensors"]


def test_every_start_has_a_folder_of_its_own_below_the_one_that_is_given(run, tmp_path):
    config = TensorBoardConfig(folder=tmp_path / "logs", images=False)
    watch(run, config)
    watch(run, config)
    folders = sorted((tmp_path / "logs").iterdir())
    assert len(folders) == 2
    assert all(folder.name.startswith("run-1a2b3c4d-") for folder in folders)
    victim = series(folders[0])["badnets-+-sig-x-seed-3"]
    assert victim.Tags()["images"] == []


def test_it_is_found_by_name_and_made_from_its_options():
    registry = load_registry()
    method = registry.find("observer:tensorboard")
    assert method.plugin == "tensorboard"
    made = registry.create(method, resolve_config(method, {"images": False}))
    assert isinstance(made, TensorBoard)
