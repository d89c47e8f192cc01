"""Which neurons are chosen: the same as by the definition, summed term by term."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backdoorkit.api import InputError, StructureError, find_structure
from backdoorkit.testing import tiny_network
from backdoorkit_trojannn._neurons import connectivity, most_connected, watched

SHAPE = (3, 16, 16)


@pytest.fixture
def model():
    """Two conv-BN pairs and a head, with norms that scale their channels differently."""
    network = tiny_network().eval()
    generator = torch.Generator().manual_seed(3)
    for norm in (network.network.bn1, network.network.bn2):
        with torch.no_grad():
            norm.weight.copy_(torch.randn(norm.weight.shape, generator=generator))
        norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) + 0.1)
    return network.requires_grad_(False)


def test_neurons_of_the_head_are_ranked_by_the_sum_of_its_absolute_weights(model):
    strengths = connectivity(model, find_structure(model, SHAPE), "network.head")
    weight = model.network.head.weight
    expected = [sum(abs(float(weight[k, j])) for k in range(4)) for j in range(32)]
    assert torch.allclose(strengths, torch.tensor(expected), atol=1e-5)
    brute = sorted(sorted(range(32), key=lambda j: -expected[j])[:5])
    assert most_connected(strengths, 5).tolist() == brute


def test_a_norm_behind_a_convolution_weighs_its_outputs(model):
    strengths = connectivity(model, find_structure(model, SHAPE), "network.conv2")
    weight, norm = model.network.conv2.weight, model.network.bn2
    scale = norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
    expected = [
        sum(float(weight[k, j].abs().sum() * scale[k]) for k in range(32)) for j in range(24)
    ]
    assert torch.allclose(strengths, torch.tensor(expected), rtol=1e-4)
    plain = weight.detach().abs().sum(dim=(0, 2, 3))
    assert strengths.argsort().tolist() != plain.argsort().tolist()


def test_activations_are_what_the_layer_reads_and_only_the_latest(model):
    images = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    neurons = torch.tensor([1, 20])
    with watched(model, "network.conv2", neurons) as watch:
        model(torch.zeros(5, *SHAPE))
        model(images)
    network = model.network
    normalised = (images - 0.5) / 0.25
    expected = network.bn1(network.conv1(normalised)).relu()[:, neurons].flatten(2)
    assert torch.allclose(watch.activations, expected, atol=1e-6)
    model(torch.ones(7, *SHAPE))
    assert torch.allclose(watch.activations, expected, atol=1e-6)


def test_neurons_behind_tokens_are_the_last_axis():
    model = nn.Sequential(nn.Flatten(2), nn.Linear(4, 6), nn.Flatten(), nn.Linear(12, 3))
    with watched(model, "1", torch.tensor([2])) as watch:
        model(torch.arange(8.0).reshape(1, 2, 2, 2))
    assert watch.activations.tolist() == [[[2.0, 6.0]]]


def test_what_has_no_such_neurons_is_refused(model):
    structure = find_structure(model, SHAPE)
    with pytest.raises(StructureError, match="is a BatchNorm2d; choose another layer"):
        connectivity(model, structure, "network.bn1")
    with pytest.raises(InputError, match="at most the layer's 32 neurons, got neurons = 33"):
        most_connected(torch.zeros(32), 33)
