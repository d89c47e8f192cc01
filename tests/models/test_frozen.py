"""Frozen copies do what the model does, with fewer norms in the way."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoorkit.api import frozen_copy
from backdoorkit.models.catalog import backdoorkit_models
from backdoorkit.models.normalized import NormalizedModel
from backdoorkit.testing.tiny import copy_state

SHAPE = (3, 32, 32)


def build(name: str) -> nn.Module:
    """The architecture of that name inside the normalising wrapper."""
    info = next(info for info in backdoorkit_models() if info.name == name)
    module, _, architecture = info.implementation.partition(":")
    torch.manual_seed(0)
    network = getattr(importlib.import_module(module), architecture)(info.config())
    return NormalizedModel(network.build(SHAPE, 10), [0.5] * 3, [0.25] * 3).eval()


def with_statistics(model: nn.Module) -> nn.Module:
    """Norms whose four vectors all matter, a negative scale among them; in eval mode."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.weight, module.bias):
                values.data = torch.randn(values.shape, generator=generator)
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
    return model.eval().double()


#: without those whose network comes from elsewhere
NAMES = [info.name for info in backdoorkit_models() if info.name not in ("torchvision", "callable")]


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def logits_and_gradient(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    images = images.clone().requires_grad_()
    logits = model(images)
    loss = functional.cross_entropy(logits, torch.arange(len(images)))
    return logits.detach(), torch.autograd.grad(loss, images)[0]


def assert_same(model: nn.Module, frozen: nn.Module, shape: tuple[int, int, int] = SHAPE) -> None:
    """In float64, in which rounding cannot hide an error."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(3, *shape, generator=generator, dtype=torch.float64)
    expected, slope = logits_and_gradient(model, images)
    logits, gradient = logits_and_gradient(frozen, images)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(gradient, slope)


@pytest.mark.parametrize("name", NAMES)
def test_it_gives_the_models_logits_and_gradients(name):
    model = with_statistics(build(name))
    assert_same(model, frozen_copy(model, SHAPE))


@pytest.mark.parametrize(
    ("name", "all_norms", "left"),
    # Before an addition there is no norm in a pre-activation network; after one, the norm stays.
    [("wrn-16-1", 13, 7), ("vgg-19-bn", 16, 0), ("resnet-18", 20, 0), ("preact-resnet-18", 16, 8)],
)
def test_norms_that_alone_read_a_convolution_go_into_it(name, all_norms, left):
    model = build(name)
    assert norms(model) == all_norms
    assert norms(frozen_copy(model, SHAPE)) == left


class ReluBetween(nn.Sequential):
    def __init__(self) -> None:
        norm = nn.BatchNorm2d(4)
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), norm, nn.Flatten(), nn.Linear(144, 5))


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        logits: Tensor = self.head((features + self.norm(features)).mean(dim=(2, 3)))
        return logits


class RunTwice(ReadTwice):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(self.conv(self.norm(self.conv(images)))).relu()
        logits: Tensor = self.head(hidden.mean(dim=(2, 3)))
        return logits


class TiedWeights(RunTwice):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.conv.weight

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(self.conv(self.second(images))).relu()
        logits: Tensor = self.head(hidden.mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize("network", [ReluBetween, ReadTwice, RunTwice, TiedWeights])
def test_a_norm_that_may_not_move_stays(network):
    torch.manual_seed(0)
    model, shape = with_statistics(network()), (3, 8, 8)
    frozen = frozen_copy(model, shape)
    assert norms(frozen) == 1
    assert_same(model, frozen, shape)


def test_a_norm_that_somebody_listens_to_stays():
    model = build("resnet-18")
    heard = []
    model.get_submodule("network.bn1").register_forward_hook(
        lambda *given: heard.append(given[2].shape)
    )
    frozen = frozen_copy(model, SHAPE)
    heard.clear()
    frozen(torch.rand(2, *SHAPE))
    assert heard == [(2, 64, 32, 32)]
    assert norms(frozen) == 1


def test_a_network_that_cannot_be_traced_is_frozen_all_the_same():
    class Odd(ReadTwice):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images)[:, :, None]  # no N x K

    torch.manual_seed(0)
    model, images = with_statistics(Odd()), torch.rand(2, 3, 8, 8).double()
    torch.testing.assert_close(frozen_copy(model, (3, 8, 8))(images), model(images))


def test_the_model_is_left_as_it_was():
    model = build("resnet-18").train()
    before = copy_state(model)
    frozen = frozen_copy(model, SHAPE)
    assert model.training
    assert not frozen.training
    assert all(weight.requires_grad for weight in model.parameters())
    assert not any(weight.requires_grad for weight in frozen.parameters())
    for name, values in copy_state(model).items():
        assert torch.equal(values, before[name]), name


def test_images_do_not_see_each_other():
    torch.manual_seed(0)
    frozen = frozen_copy(with_statistics(build("wrn-16-1")), SHAPE)
    images = torch.rand(4, *SHAPE).double()
    together = logits_and_gradient(frozen, images)[0]
    torch.testing.assert_close(frozen(images[:1]), together[:1])
