"""The generators: their layers, sizes and first weights."""

from __future__ import annotations

import pytest
import torch

from backdoorkit.api import InputError
from backdoorkit_inputaware._networks import ImageNetwork, new_network


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(in_channels=3, out_channels=1, width=4, depth=2, seed=0):
    return new_network((in_channels, 16, 16), out_channels, width, depth, seeded(seed))


def test_network_has_the_published_layers():
    made = network(width=32, depth=3)
    channels = [m.out_channels for m in made.modules() if isinstance(m, torch.nn.Conv2d)]
    assert channels == [32, 32, 64, 64, 128, 128, 128, 128, 64, 64, 32, 32, 1]
    assert sum(p.numel() for p in made.parameters()) == pytest.approx(0.72e6, rel=0.05)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 40), (3, 9, 15)])
def test_any_size_comes_back_as_it_was(shape):
    made = new_network(shape, shape[0], 4, 3, seeded())(torch.rand(2, *shape))
    assert made.shape == (2, *shape)
    assert made.min() >= 0
    assert made.max() <= 1


def test_images_that_cannot_be_halved_so_often_are_refused():
    with pytest.raises(InputError, match="halve images 3 times, and these have 7x8"):
        new_network((3, 7, 8), 1, 4, 3, seeded())


def test_a_network_comes_back_from_its_state():
    made = network(out_channels=3).eval()
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(ImageNetwork.of(made.state_dict())(images), made(images))


def test_initial_weights_come_from_the_generator_alone():
    first, again, other = (network(seed=seed).state_dict() for seed in (0, 0, 1))
    name = "middle.conv.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
