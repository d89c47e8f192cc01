"""Every defense and detector on data that are not three-channelled, square, or evenly divided."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from backdoorkit.api import ImageSet
from backdoorkit.errors import StructureError
from backdoorkit.hooks.info import Kind
from backdoorkit.hooks.registry import load_registry, resolve_config
from backdoorkit.models.normalized import NormalizedModel
from backdoorkit.models.structure import find_structure
from backdoorkit.pipeline.envelope import Resources

REGISTRY = load_registry()
METHODS = [m for kind in (Kind.DEFENSE, Kind.DETECTOR) for m in REGISTRY.methods(kind)]
#: these compare classes with each other
AT_LEAST_THREE = {"nc", "df-tnd"}


class Network(nn.Module):
    """With what surprises: dropout, a bias before batch norm, a layer that is never trained."""

    def __init__(self, channels, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(8)
        self.unused = nn.Linear(2, 2)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(8, classes)

    def forward(self, images):
        hidden = self.norm1(self.conv1(images)).relu()
        hidden = self.norm2(self.conv2(hidden)).relu()
        return self.head(self.dropout(hidden.mean(dim=(2, 3))))


def images_of(count, shape, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    return ImageSet.from_tensors(images, torch.arange(count) % classes, num_classes=classes)


def resources_of(shape, classes, reserve):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = NormalizedModel(Network(shape[0], classes), [0.5] * shape[0], [0.25] * shape[0])
    training = images_of(33, shape, classes, seed=1)
    return Resources(
        model=model.eval(),
        clean=images_of(reserve, shape, classes, seed=2),
        training_data=lambda: training,
        build_model=lambda: copy.deepcopy(model),
        num_classes=classes,
        image_shape=shape,
    )


# Batches of 8 leave one image over: of 33 for training, of 41 in reserve, and of the 33 that are
# left of these when 8 are held out.
@pytest.mark.parametrize(
    ("shape", "classes"), [((1, 12, 20), 3), ((4, 16, 16), 5), ((3, 16, 16), 2)]
)
@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.kind}:{m.name}")
def test_odd_data_are_no_trouble(method, shape, classes, quick, run_method):
    resources = resources_of(shape, classes, reserve=41)
    values = {"batch_size": 8} if "batch_size" in quick(method) else {}
    instance = REGISTRY.create(method, resolve_config(method, quick(method, values)))
    structure = find_structure(resources.model, shape, classes)
    if classes < 3 and method.name in AT_LEAST_THREE:
        with pytest.raises(StructureError, match="at least 3"):
            instance.check(structure)
        return
    instance.check(structure)
    run_method(instance, method, resources)
