"""Finding the biases that switch penultimate units off, and switching them off."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from backdoorkit.api import StructureError
from backdoorkit.testing import tiny_context, tiny_images, tiny_network, tiny_victim
from backdoorkit_pruningaware import PruningAwareConfig
from backdoorkit_pruningaware._attack import choose_dormant
from backdoorkit_pruningaware._units import Units

DATA = tiny_images(40)


class Residual(nn.Module):
    """The last ReLU comes after the sum of two branches."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        skip = self.stem(images).relu()
        return self.head((self.norm(self.conv(skip)) + skip).relu().mean((2, 3)))


class Flattened(nn.Module):
    """A 2 x 2 map is flattened: four inputs of the head belong to one unit."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(24, 4)

    def forward(self, images):
        return self.head(functional.adaptive_avg_pool2d(self.conv(images).relu(), 2).flatten(1))


class Hidden(nn.Module):
    """A hidden layer before the head."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(768, 10)
        self.head = nn.Linear(10, 4)

    def forward(self, images):
        return self.head(self.hidden(images.flatten(1)).relu())


class Signed(Residual):
    """Features that may be negative."""

    def forward(self, images):
        return self.head(self.norm(self.conv(self.stem(images).relu())).mean((2, 3)))


def units_of(model):
    return Units.of(model, DATA, tiny_context("pruningaware"))


@pytest.mark.parametrize(
    ("model", "gate", "count", "columns"),
    [
        (tiny_network, "network.bn2", 32, 1),
        (Residual, "norm", 8, 1),
        (Flattened, "conv", 6, 4),
        (Hidden, "hidden", 10, 1),
    ],
)
def test_the_biases_before_the_last_relu_are_found(model, gate, count, columns):
    torch.manual_seed(0)
    network = model().train()
    before = copy.deepcopy(network.state_dict())
    units = units_of(network)
    assert (units.gate.name, units.count, units.columns) == (gate, count, columns)
    assert network.training
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_features_without_a_relu_are_refused():
    with pytest.raises(StructureError, match="do not come out of a ReLU with a bias per unit"):
        units_of(Signed())


def test_units_fall_asleep_and_leave_the_others_as_they_were():
    model = copy.deepcopy(tiny_victim().model)
    units, context = units_of(model), tiny_context("pruningaware")
    marked = torch.zeros(32, dtype=torch.bool)
    marked[[1, 4, 30]] = True
    before, _ = units.features(DATA, context)
    biases = units.bias.detach().clone()
    reduction = units.put_to_sleep(marked, DATA, context)
    after, _ = units.features(DATA, context)
    assert before[:, marked].amax() > 0
    assert (after[:, marked] == 0).all()
    assert torch.equal(after[:, ~marked], before[:, ~marked])
    assert torch.equal(units.bias.detach(), biases - reduction)
    assert (reduction[~marked] == 0).all()
    # The pooled maximum is a lower bound of what is needed.
    assert (reduction[marked] >= before[:, marked].amax((0, 2))).all()


class Planted(nn.Module):
    """Unit k answers to class k alone; units 4 to 7 answer to nothing."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(4, 8)
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            for k in range(4):
                self.hidden.weight[k, k] = self.head.weight[k, k] = 1 + k

    def forward(self, images):
        return self.head(self.hidden(images[:, 0].flatten(1)).relu())


@pytest.fixture
def planted():
    """Images of 2 x 2 pixels, of which the one that shows the class is lit."""
    images = torch.zeros(40, 1, 2, 2, dtype=torch.uint8)
    labels = torch.arange(40) % 4
    images.flatten(1)[torch.arange(40), labels] = 255
    data = type(DATA).from_tensors(images, labels, num_classes=4)
    return Units.of(Planted(), data, tiny_context("pruningaware")), data


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"prune_ratio": 0.25}, 2),
        ({"prune_ratio": 0.0}, 0),
        # Unit 0 costs nothing, since class 0 wins ties; unit 1 then costs a quarter.
        ({"tolerance": 0.1}, 5),
        ({"tolerance": 0.3}, 6),
        ({"tolerance": 0.5}, 7),
    ],
)
def test_the_least_active_are_set_aside_as_far_as_accuracy_allows(planted, config, expected):
    units, data = planted
    dormant = choose_dormant(
        units, data, PruningAwareConfig(**config), tiny_context("pruningaware")
    )
    by_activity = [4, 5, 6, 7, 0, 1, 2, 3]
    assert sorted(dormant.nonzero().flatten().tolist()) == sorted(by_activity[:expected])
