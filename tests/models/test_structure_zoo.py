"""The structure finder on torchvision's networks, untrained."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from backdoorkit.errors import StructureError
from backdoorkit.models.structure import find_structure

models = torchvision.models


def transformer(layers: int = 4) -> nn.Module:
    return models.VisionTransformer(32, 8, layers, 4, 64, 128, num_classes=10)


@pytest.mark.parametrize(
    ("build", "head", "feature_dim", "last_convolution", "stages"),
    [
        (models.resnet18, "fc", 512, "layer4.1.conv2", ("layer2", "layer3", "layer4")),
        (
            models.vgg11_bn,
            "classifier.6",
            4096,
            "features.25",
            ("features.13", "features.20", "features.27"),
        ),
        (
            models.mobilenet_v3_small,
            "classifier.3",
            1024,
            "features.12.0",
            ("features.3", "features.8", "features.12"),
        ),
        (
            models.densenet121,
            "classifier",
            1024,
            "features.denseblock4.denselayer16.conv2",
            ("features.denseblock2", "features.denseblock3", "features.norm5"),
        ),
        (
            models.squeezenet1_1,
            "classifier.1",
            512,
            "features.12.expand3x3",
            ("features.4", "features.7", "features.12"),
        ),
    ],
)
def test_known_networks(build, head, feature_dim, last_convolution, stages):
    size = 32 if build is models.vgg11_bn else 64
    structure = find_structure(build(weights=None, num_classes=10), (3, size, size), 10)
    assert structure.head == head
    assert structure.feature_dim == feature_dim
    assert structure.last_convolution == last_convolution
    assert structure.stages == stages


def test_resnet_shortcuts_carry_another_name_here_and_are_found_all_the_same():
    structure = find_structure(models.resnet18(weights=None), (3, 32, 32))
    assert structure.shortcuts == {f"layer{i}.0.downsample.0" for i in (2, 3, 4)}
    assert len(structure.require_pairs("clp")) == 20
    assert all(len(pair.conv_names) == 1 for pair in structure.conv_norm_pairs)


def test_mobilenet_gates_are_told_apart_from_the_main_branch():
    structure = find_structure(models.mobilenet_v3_small(weights=None), (3, 32, 32))
    assert len(structure.gates) == 18
    without_norm = {p.conv_names[0] for p in structure.conv_norm_pairs if p.norm_name is None}
    assert without_norm == structure.gates


def test_densenet_norms_read_ranges_made_by_earlier_layers():
    structure = find_structure(models.densenet121(weights=None), (3, 32, 32))
    name = "features.denseblock2.denselayer2.norm1"
    read = [p for p in structure.conv_norm_pairs if p.norm_name == name]
    assert [(p.conv_names[0], p.start, p.channels) for p in read] == [
        ("features.transition1.conv", 0, 128),
        ("features.denseblock2.denselayer1.conv2", 128, 32),
    ]


def test_transformer_tokens_become_maps_without_the_class_token():
    network = transformer(layers=4).eval()
    structure = find_structure(network, (3, 32, 32))
    layers = [f"encoder.layers.encoder_layer_{i}" for i in range(4)]
    assert structure.head == "heads.head"
    assert structure.trunk == tuple(layers)
    assert structure.stages == (layers[1], layers[2], layers[3])
    tokens: list[torch.Tensor] = []
    network.encoder.layers[3].register_forward_hook(lambda _, __, out: tokens.append(out))
    with structure.feature_maps(network) as maps:
        network(torch.rand(2, 3, 32, 32))
    assert {name: tuple(value.shape) for name, value in maps.items()} == dict.fromkeys(
        layers[1:], (2, 64, 4, 4)
    )
    torch.testing.assert_close(maps[layers[3]][:, :, 0, 1], tokens[0][:, 2])  # 0: class token


def test_transformer_residual_layers_are_what_its_norms_read():
    structure = find_structure(transformer(layers=2), (3, 32, 32))
    first = "encoder.layers.encoder_layer_0"
    read = {p.norm_name: (p.conv_names, p.has_identity) for p in structure.conv_norm_pairs}
    assert read == {
        f"{first}.ln_1": (("conv_proj",), False),
        f"{first}.ln_2": ((f"{first}.self_attention.out_proj",), True),
        "encoder.layers.encoder_layer_1.ln_1": ((f"{first}.mlp.3",), True),
        "encoder.layers.encoder_layer_1.ln_2": (
            ("encoder.layers.encoder_layer_1.self_attention.out_proj",),
            True,
        ),
        "encoder.ln": (("encoder.layers.encoder_layer_1.mlp.3",), True),
    }
    assert structure.shortcuts == frozenset()
    with pytest.raises(StructureError, match="layer-norm"):
        structure.require_pairs("clp")


def test_transformer_units_include_the_fused_attention_rows():
    structure = find_structure(transformer(layers=1), (3, 32, 32))
    units = {layer.name: layer.units for layer in structure.layers("attention", "linear")}
    prefix = "encoder.layers.encoder_layer_0"
    assert units == {
        f"{prefix}.self_attention.in_proj": 192,
        f"{prefix}.self_attention.out_proj": 64,
        f"{prefix}.mlp.0": 128,
        f"{prefix}.mlp.3": 64,
    }


def test_channels_last_networks_give_channels_first_maps():
    network = models.SwinTransformer([2, 2], 8, [1, 1, 1], [2, 2, 4], [4, 4], num_classes=10).eval()
    structure = find_structure(network, (3, 32, 32))
    with structure.feature_maps(network) as maps:
        network(torch.rand(2, 3, 32, 32))
    assert [tuple(value.shape) for value in maps.values()] == [
        (2, 8, 16, 16),
        (2, 16, 8, 8),
        (2, 32, 4, 4),
    ]
