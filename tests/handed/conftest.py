"""A model with a backdoor written down by hand, images for it, and methods that find it."""

from __future__ import annotations

import sys
import types

import attrs
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from backdoorkit import MethodInfo, Need, hookimpl, option
from backdoorkit.api import (
    Defense,
    DefenseResult,
    DetectionResult,
    Detector,
)
from backdoorkit.cli import cli
from backdoorkit.hooks.registry import load_registry
from backdoorkit.models.checkpoints import save_weights
from backdoorkit.testing.planted import (
    PLANTED_CLASSES,
    PLANTED_SHAPE,
    PlantedNetwork,
    planted_images,
)


@attrs.frozen(kw_only=True)
class CornerOptions:
    threshold: float = option(0.5, help="Share.")
    fault: str = option("", help="Fails so.")
    p_value: float = option(0.0, help="By theory; 0 is none.")


@attrs.frozen(kw_only=True)
class NoOptions:
    pass


class Corner(Detector[CornerOptions]):
    """Lights the corner and looks how many images go where most of them go."""

    def run(self, task, context):
        if self.config.fault:
            raise RuntimeError(self.config.fault)
        masks = torch.ones(PLANTED_CLASSES, 1, *PLANTED_SHAPE[1:])
        masks[0] = 0
        masks[0, :, -2:, -2:] = 1
        patterns = torch.ones(PLANTED_CLASSES, *PLANTED_SHAPE)
        images = task.clean.images.float() / 255
        with torch.no_grad():
            predicted = task.model(torch.lerp(images, patterns[0], masks[0])).argmax(1)
        share = float((predicted == 0).float().mean())
        found = share > self.config.threshold
        details = {"flagged": [0] if found else [], "suspect": 0, "images": len(task.clean)}
        if self.config.p_value:
            details["p_value"] = self.config.p_value
        return DetectionResult(
            score=share,
            threshold=self.config.threshold,
            target=0 if found else None,
            details=details,
            tensors={"masks": masks, "patterns": patterns},
        )


class Bias(Detector[NoOptions]):
    """Needs no images: the largest vote of a head."""

    def run(self, task, context):
        heads = [parameter for parameter in task.model.parameters() if parameter.ndim == 2]
        return DetectionResult(score=float(heads[-1].detach().max()), threshold=20.0)


class Cut(Defense[NoOptions]):
    """Takes the trigger's vote away."""

    def run(self, task, context):
        with torch.no_grad():
            task.model.network.head.weight[:, -1] = 0
        return DefenseResult(model=task.model, details={"cut": 1})


def info(name, implementation, config, needs):
    return MethodInfo(
        name=name,
        summary="A toy.",
        implementation=f"handed_methods:{implementation}",
        config=config,
        needs=needs,
    )


class Methods:
    """The detector bears the name that is looked for where none is given."""

    @staticmethod
    @hookimpl
    def backdoorkit_detectors():
        return [
            info("nc", "Corner", CornerOptions, {Need.WEIGHTS, Need.CLEAN_SAMPLES}),
            info("bias", "Bias", NoOptions, {Need.WEIGHTS}),
            info("greedy", "Bias", NoOptions, {Need.TRAINING_DATA}),
        ]

    @staticmethod
    @hookimpl
    def backdoorkit_defenses():
        return [info("cut", "Cut", NoOptions, {Need.WEIGHTS})]


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    methods = types.ModuleType("handed_methods")
    methods.Corner, methods.Bias, methods.Cut = Corner, Bias, Cut
    networks = types.ModuleType("handed_networks")
    networks.make = lambda num_classes: PlantedNetwork()
    networks.small = _small
    monkeypatch.setitem(sys.modules, "handed_methods", methods)
    monkeypatch.setitem(sys.modules, "handed_networks", networks)


def _small(num_classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))


@pytest.fixture
def model(tmp_path):
    """The backdoored model, as training scripts save it."""
    path = tmp_path / "victim.pth"
    weights = PlantedNetwork().state_dict()
    torch.save({"net": {f"module.{name}": value for name, value in weights.items()}}, path)
    return path


@pytest.fixture
def clean_model(tmp_path):
    path = tmp_path / "clean.safetensors"
    save_weights(path, PlantedNetwork(vote=0.0))
    return path


@pytest.fixture
def images(tmp_path):
    """40 pictures in folders that bear their labels."""
    return _write_images(tmp_path / "images", planted_images(40))


@pytest.fixture
def write_images():
    """Writes an image set as a folder of pictures."""
    return _write_images


def _write_images(folder, images, *, flat=False):
    for number, (pixels, label) in enumerate(zip(images.images, images.labels, strict=True)):
        path = folder / ("" if flat else str(int(label))) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0].numpy()).save(path)
    return folder


@pytest.fixture
def call(tmp_path, monkeypatch):
    """``backdoorkit`` with the toy methods, in a folder of its own."""
    registry = load_registry(entry_points=())
    registry.register(Methods, name="methods")
    monkeypatch.chdir(tmp_path)

    def call(command, *args):
        words = [command, *map(str, args), "--threads", "1", "--store", "store"]
        return CliRunner().invoke(cli, ["-q", *words], obj={"registry": lambda: registry})

    return call


@pytest.fixture
def refusal():
    """The one line of a command that ended with 2."""

    def refusal(result):
        assert result.exit_code == 2, result.output
        (line,) = [line for line in result.stderr.splitlines() if line]
        assert line.startswith("Error: ")
        assert not result.stdout
        return line

    return refusal


@pytest.fixture
def here(tmp_path):
    return tmp_path
