"""Every defense and detector on every architecture: it runs, or it is refused before it runs."""

from __future__ import annotations

import copy
import functools
import importlib.util
import re
from pathlib import Path

import attrs
import pytest
import torch
from torch import nn

from backdoorkit.errors import StructureError
from backdoorkit.hooks.info import Kind
from backdoorkit.hooks.registry import load_registry, resolve_config
from backdoorkit.models.normalized import NormalizedModel
from backdoorkit.models.structure import Structure, find_structure
from backdoorkit.pipeline.envelope import Resources
from backdoorkit.testing import tiny_images

CLASSES = 4
DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "methods" / "architectures.md"
#: Narrow where that is an option; SqueezeNet halves images four times and takes no smaller ones.
BUILDS = {
    "PreAct-ResNet-18": ("preact-resnet-18", {"width": 4}, 16),
    "ResNet-18": ("resnet-18", {"width": 4}, 16),
    "WRN-16-1": ("wrn-16-1", {}, 16),
    "VGG-19-BN": ("vgg-19-bn", {}, 8),
    "ViT": ("vit", {"dim": 24, "depth": 3}, 16),
    "SqueezeNet": ("torchvision", {"architecture": "squeezenet1_1"}, 32),
    "plain": (None, {}, 16),
}


def load_generate():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATE = load_generate()
#: every defense and detector with its defaults, and with options that ask for other layers
ROWS = {GENERATE.asked_label(*asked): asked for asked in GENERATE.asked()}


class Plain(nn.Module):
    """Convolutions and a linear head, without any norm."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, images):
        return self.head(self.conv2(self.conv1(images).relu()).relu().mean(dim=(2, 3)))


@attrs.frozen(eq=False)
class Network:
    """One architecture, and all that a defender could be given of it."""

    label: str
    structure: Structure
    resources: Resources


@functools.cache
def registry():
    return load_registry()


def build(label):
    name, options, size = BUILDS[label]
    shape = (3, size, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name is None:
            network = Plain()
        else:
            method = registry().find(name, Kind.MODEL)
            architecture = registry().create(method, resolve_config(method, options))
            network = architecture.build(shape, CLASSES)
    return NormalizedModel(network, [0.5] * 3, [0.25] * 3).eval()


@pytest.fixture(scope="module", params=BUILDS)
def network(request):
    size = BUILDS[request.param][2]
    shape = (3, size, size)
    model = build(request.param)
    training = tiny_images(16, seed=1, image_shape=shape)
    resources = Resources(
        model=model,
        clean=tiny_images(24, seed=2, image_shape=shape),  # as few as can be split
        training_data=lambda: training,
        build_model=lambda: copy.deepcopy(model),
        num_classes=CLASSES,
        image_shape=shape,
    )
    return Network(request.param, find_structure(model, shape, CLASSES), resources)


def refused_in_the_docs(label, row):
    header, *rows = (line for line in PAGE.read_text("utf-8").splitlines() if line[:1] == "|")
    column = [cell.strip() for cell in header.split("|")].index(label)
    (found,) = (line for line in rows if line.startswith(f"| {row} |"))
    return found.split("|")[column].strip().startswith("refused")


def test_every_architecture_of_the_docs_is_tried():
    assert set(GENERATE.ARCHITECTURES) == set(BUILDS) - {"plain"}


@pytest.mark.parametrize("row", ROWS)
def test_a_method_runs_or_is_refused_with_layer_and_reason(network, row, quick, run_method):
    method, values = ROWS[row]
    instance = registry().create(method, resolve_config(method, quick(method, values)))
    try:
        instance.check(network.structure)
        refusal = None
    except StructureError as error:
        refusal = str(error)
    if network.label in GENERATE.ARCHITECTURES:
        assert (refusal is not None) == refused_in_the_docs(network.label, row)
    if refusal is None:
        run_method(instance, method, network.resources)
        return
    assert method.name in refusal
    assert network.structure.network in refusal
    assert re.search(r"'network\.[\w.]+'|has none", refusal)  # the layer, or that there is none
