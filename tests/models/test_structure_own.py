"""The structure finder on the core's own architectures, inside the normalising wrapper."""

from __future__ import annotations

import pytest

from backdoorkit.hooks.options import structure as configure
from backdoorkit.models.catalog import backdoorkit_models
from backdoorkit.models.normalized import NormalizedModel
from backdoorkit.models.structure import Structure, find_structure

SHAPE = (3, 16, 16)


def found(name: str, **values: object) -> Structure:
    info = next(info for info in backdoorkit_models() if info.name == name)
    module, _, cls = info.implementation.partition(":")
    architecture = getattr(__import__(module, fromlist=[cls]), cls)
    network = architecture(configure(info.config, values)).build(SHAPE, 10)
    return find_structure(NormalizedModel(network, [0.5] * 3, [0.25] * 3), SHAPE, 10)


def networks(*names: str) -> tuple[str, ...]:
    return tuple(f"network.{name}" for name in names)


@pytest.mark.parametrize(
    ("name", "values", "head", "last_convolution", "stages", "shortcuts"),
    [
        ("preact-resnet-18", {"width": 8}, "linear", "layer4.1.conv2",
         ("layer2", "layer3", "layer4"), [f"layer{i}.0.shortcut.0" for i in (2, 3, 4)]),
        ("resnet-18", {"width": 8}, "linear", "layer4.1.conv2",
         ("layer2", "layer3", "layer4"), [f"layer{i}.0.shortcut.0" for i in (2, 3, 4)]),
        # Widening factor 1 keeps 16 channels in the first stage: no projection there.
        ("wrn-16-1", {}, "fc", "block3.layer.1.conv2",
         ("block1", "block2", "bn1"), [f"block{i}.layer.0.convShortcut" for i in (2, 3)]),
        ("small-cnn", {"width": 8}, None, None, None, []),
    ],
)  # fmt: skip
def test_known_layers(name, values, head, last_convolution, stages, shortcuts):
    structure = found(name, **values)
    assert structure.shortcuts == set(networks(*shortcuts))
    assert len(structure.stages) == 3
    assert structure.has_head
    if head is not None:
        assert structure.head == f"network.{head}"
        assert structure.last_convolution == f"network.{last_convolution}"
        assert structure.stages == networks(*stages)


def test_units_of_preact_resnet_18_are_as_in_the_papers():
    """17 convolutions outside shortcuts with 3904 neurons (TSBD), 3392 norm channels (ANP)."""
    structure = found("preact-resnet-18")
    convolutions = structure.layers("conv")
    assert len(convolutions) == 17
    assert sum(layer.units for layer in convolutions) == 3904
    assert sum(layer.units for layer in structure.layers("batch-norm")) == 3392


def test_preact_resnet_18_sums_are_scored_as_sums_and_its_last_convolution_is_not_forgotten():
    structure = found("preact-resnet-18", width=8)
    sums = {
        pair.norm_name: (pair.conv_names, pair.has_identity)
        for pair in structure.conv_norm_pairs
        if len(pair.conv_names) > 1 or pair.has_identity
    }
    for stage in (2, 3, 4):
        before = f"network.layer{stage}"
        assert sums.pop(f"{before}.1.bn1") == (
            (f"{before}.0.conv2", f"{before}.0.shortcut.0"),
            False,
        )
        previous = f"network.layer{stage - 1}.1"
        assert sums.pop(f"{before}.0.bn1") == ((f"{previous}.conv2",), True)
    assert sums == {"network.layer1.1.bn1": (("network.layer1.0.conv2",), True)}
    alone = [pair.conv_names for pair in structure.conv_norm_pairs if pair.norm_name is None]
    assert alone == [networks("layer4.1.conv2")]
    assert structure.unpaired_norms == {}


def test_vision_transformer_has_three_stages_of_tokens():
    structure = found("vit", dim=24, depth=6, heads=3)
    assert structure.head == "network.head"
    assert structure.stages == networks("blocks.1", "blocks.3", "blocks.5")
    assert structure.layer("network.blocks.0.attention.in_proj").units == 72
