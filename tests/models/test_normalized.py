"""Normalisation is a layer of the model: images stay in [0, 1] everywhere else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backdoorkit.errors import InputError
from backdoorkit.models.normalized import NormalizedModel

MEAN, STD = (0.5, 0.25, 0.0), (0.5, 0.25, 2.0)


def test_network_gets_each_channel_minus_its_mean_over_its_deviation():
    images = torch.tensor([1.0, 0.0, 0.5]).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    seen = NormalizedModel(nn.Identity(), MEAN, STD)(images)
    assert seen.shape == (2, 3, 4, 5)
    assert seen[1, :, 3, 4].tolist() == [1.0, -1.0, 0.25]


def test_it_equals_normalising_by_hand():
    images = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    by_hand = torch.stack([(images[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)
    torch.testing.assert_close(NormalizedModel(network, MEAN, STD)(images), network(by_hand))


def test_statistics_are_stored_with_the_weights_and_are_not_trained():
    model = NormalizedModel(nn.Linear(2, 2), MEAN, STD)
    assert set(model.state_dict()) == {"mean", "std", "network.weight", "network.bias"}
    assert [name for name, _ in model.named_parameters()] == ["network.weight", "network.bias"]
    assert model.mean.dtype == torch.float32
    assert model.double().std.dtype == torch.float64


@pytest.mark.parametrize(
    ("mean", "std", "fault"),
    [
        ((0.5,), (0.5, 0.5), "1 and 2 numbers"),
        ((), (), "0 and 0 numbers"),
        ((0.5,), (0.0,), "above 0"),
        ((0.5,), (float("nan"),), "above 0"),
    ],
)
def test_statistics_that_cannot_be_used_are_refused(mean, std, fault):
    with pytest.raises(InputError, match=fault):
        NormalizedModel(nn.Identity(), mean, std)
