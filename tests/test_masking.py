"""Masks on units leave the network alone, and pruning by them does what it says."""

from __future__ import annotations

import copy
import itertools

import attrs
import pytest
import torch
from torch import nn

from backdoorkit import Selection
from backdoorkit.api import ContractError, InputError, StructureError, find_structure
from backdoorkit.context import Context
from backdoorkit.errors import OracleNotPermittedError
from backdoorkit.masking import (
    MaskedModel,
    UnitPruner,
    by_layer,
    lowest_units,
    masked,
    masked_layers,
    prune_by_masks,
)
from backdoorkit.models.catalog import PreActResNetConfig, ResNetConfig, ViTConfig
from backdoorkit.testing import tiny_context, tiny_images, tiny_network

SHAPE = (3, 16, 16)


class Plain(nn.Module):
    """No norm layer; one weight serves two layers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, 5)

    def forward(self, images):
        features = self.conv(images).relu().mean(dim=(2, 3))
        return self.head(self.second(self.first(features).relu()).relu())


class Attentive(nn.Module):
    """Layer norm without shifts and RMS norm, around attention."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.LayerNorm(8, bias=False)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.RMSNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        queries = self.norm(tokens)
        tokens = tokens + self.attention(queries, queries, queries, need_weights=False)[0]
        return self.head(self.last(tokens).mean(dim=1))


def images(count=6):
    return tiny_images(count).images.float() / 255


def trained_norms():
    """A network whose scales, shifts and statistics are anything but one and zero."""
    model = tiny_network()
    with torch.no_grad():
        for norm in (model.network.bn1, model.network.bn2):
            for values in (norm.weight, norm.running_var):
                values.copy_(torch.rand(len(values), generator=torch.Generator().manual_seed(1)))
                values.add_(0.5)
            norm.bias.copy_(torch.linspace(-1, 1, len(norm.bias)))
    return model.eval()


def layers_of(model, units="auto"):
    return masked_layers(find_structure(model, SHAPE), units, "test")


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("build", [trained_norms, Plain, Attentive])
@pytest.mark.parametrize("units", ["auto", "neuron"])
def test_coefficients_of_one_change_nothing(build, units, train):
    torch.manual_seed(0)
    model = build().eval()
    with masked(model, layers_of(model, units), batch_statistics=train) as masked_model:
        # With gradients, as without them attention takes another way of rounding.
        ones = torch.ones(masked_model.units, requires_grad=True)
        scaled = masked_model(images(), ones, ones)
        expected = model(images().contiguous(memory_format=torch.channels_last))
    assert torch.equal(scaled, expected)


def test_neither_weights_nor_statistics_nor_modes_of_the_network_change():
    model = trained_norms()
    model.network.bn1.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with masked(model, layers_of(model), batch_statistics=True) as masked_model:
        masks = torch.ones(masked_model.units, requires_grad=True)
        for _ in range(2):
            masked_model(images(), masks, masks).sum().backward()
        assert model.network.bn2.training
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.network.bn1.training
    assert not model.network.bn2.training


def test_the_mask_s_gradient_is_that_of_the_scale_times_the_scale():
    model = trained_norms()
    masked_model = MaskedModel(model, layers_of(model))
    masks = torch.ones(masked_model.units, requires_grad=True)
    shifts = torch.ones(masked_model.units, requires_grad=True)
    masked_model(images(), masks, shifts).logsumexp(dim=1).sum().backward()
    model(images()).logsumexp(dim=1).sum().backward()
    norms = (model.network.bn1, model.network.bn2)
    by_scale = torch.cat([norm.weight.grad * norm.weight for norm in norms])
    by_shift = torch.cat([norm.bias.grad * norm.bias for norm in norms])
    torch.testing.assert_close(masks.grad, by_scale)
    torch.testing.assert_close(shifts.grad, by_shift)


def test_a_mask_of_zeros_and_ones_is_what_pruning_gives():
    model = trained_norms()
    layers = layers_of(model)
    masks = (torch.rand(56, generator=torch.Generator().manual_seed(0)) > 0.4).float()
    expected = MaskedModel(model, layers)(images(), masks)
    UnitPruner(model, layers).prune(masks == 0)
    torch.testing.assert_close(model(images()), expected)


def test_a_neuron_s_weights_are_masked_and_its_bias_is_not():
    torch.manual_seed(0)
    model = Plain().eval()
    layers = layers_of(model)
    masked_model = MaskedModel(model, layers)
    assert list(by_layer(torch.arange(8), layers)) == ["conv", "first"]
    scales, shifts = torch.rand(8), torch.rand(8)

    expected = copy.deepcopy(model)
    with torch.no_grad():
        expected.conv.weight.mul_(scales[:4, None, None, None])
        expected.conv.bias.mul_(shifts[:4])
        expected.first.weight.mul_(scales[4:, None])  # also the second's: it is one weight
        expected.first.bias.mul_(shifts[4:])
    torch.testing.assert_close(masked_model(images(), scales, shifts), expected(images()))
    expected.conv.bias, expected.first.bias = model.conv.bias, model.first.bias
    torch.testing.assert_close(masked_model(images(), scales), expected(images()))


def test_norms_without_shift_take_no_shift():
    torch.manual_seed(0)
    model = Attentive().eval()
    masked_model = MaskedModel(model, layers_of(model))
    ones = torch.ones(masked_model.units)
    assert torch.equal(masked_model(images(), ones, 3 * ones), masked_model(images(), ones))


def test_a_pruned_channel_is_the_constant_shift():
    model = trained_norms()
    units = torch.zeros(56, dtype=torch.bool)
    units[[2, 24 + 5]] = True
    UnitPruner(model, layers_of(model)).prune(units)
    outputs = {}
    for name in ("bn1", "bn2"):
        model.network.get_submodule(name).register_forward_hook(
            lambda module, _, output, name=name: outputs.update({name: output})
        )
    model(images())
    assert bool((outputs["bn1"][:, 2] == model.network.bn1.bias[2]).all())
    assert bool((outputs["bn2"][:, 5] == model.network.bn2.bias[5]).all())
    assert outputs["bn1"][:, 3].std() > 0


def test_pruning_changes_the_listed_scales_alone_and_is_taken_back():
    model = trained_norms()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruner = UnitPruner(model, layers_of(model))
    units = torch.zeros(56, dtype=torch.bool)
    units[3] = True
    pruner.prune(~units)
    pruner.prune(units)
    after = model.state_dict()
    assert [n for n in before if not torch.equal(before[n], after[n])] == ["network.bn1.weight"]
    differing = before["network.bn1.weight"] != after["network.bn1.weight"]
    assert differing.nonzero().flatten().tolist() == [3]
    pruner.prune(torch.zeros(56, dtype=torch.bool))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_units_are_chosen_by_threshold_or_by_number():
    masks = torch.tensor([0.5, 0.0, 0.2, 0.5, 1.0])
    assert lowest_units(masks, "threshold", 0).tolist() == [False, True, False, False, False]
    assert lowest_units(masks, "threshold", 0.2).tolist() == [False, True, True, False, False]
    assert lowest_units(masks, "number", 3).tolist() == [True, True, True, False, False]
    assert not lowest_units(masks, "number", 0).any()
    for by, levels in (("threshold", (0, 0.1, 0.3, 0.6)), ("number", range(6))):
        marked = [lowest_units(masks, by, level) for level in levels]
        assert all(bool((less <= more).all()) for less, more in itertools.pairwise(marked))


@pytest.mark.parametrize(
    ("architecture", "config", "expected"),
    [
        # 4,800 and 3,392 at the usual width of 64
        ("_resnet:ResNet18", ResNetConfig(width=8), 4800 // 8),
        ("_preact:PreActResNet18", PreActResNetConfig(width=8), 3392 // 8),
    ],
)
def test_every_norm_channel_is_a_unit_also_on_shortcuts(architecture, config, expected):
    module, _, name = architecture.partition(":")
    build = getattr(pytest.importorskip(f"backdoorkit.models.{module}"), name)
    layers = layers_of(build(config).build(SHAPE, 10))
    assert sum(layer.units for layer in layers) == expected


def test_a_transformer_is_masked_at_its_layer_norms():
    from backdoorkit.models._vit import VisionTransformerArchitecture

    model = VisionTransformerArchitecture(ViTConfig()).build(SHAPE, 10)
    assert {layer.kind for layer in layers_of(model)} == {"layer-norm"}


def test_without_norms_neurons_are_masked_but_never_the_head():
    assert [layer.name for layer in layers_of(Plain())] == ["conv", "first"]
    with pytest.raises(StructureError, match=r"test masks .* norm layers .*'conv' \(conv\)"):
        layers_of(Plain(), "norm")


def test_a_model_that_is_only_a_head_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    with pytest.raises(StructureError, match="'1'"):
        layers_of(model)


def test_no_layers_are_a_mistake():
    with pytest.raises(ContractError, match="layers"):
        MaskedModel(Plain(), ())


# -- choosing how far to prune ---------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Options:
    selection: Selection = Selection.CLEAN
    prune_by: str = "threshold"
    threshold: float = 0.5
    number: int = 2
    grid: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6)
    step: int = 1
    tolerance: float = 0.1


class Counting(nn.Module):
    """Unit k of five alone answers class k, on images whose brightest channel is k."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(5, 5, 1, bias=False)
        self.head = nn.Linear(5, 5)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(5)[:, :, None, None])
            self.head.weight.copy_(torch.eye(5))
            self.head.bias.copy_(torch.tensor([0.1, 0, 0, 0, 0]))

    def forward(self, images):
        return self.head(self.conv(images).mean(dim=(2, 3)))


MASKS = torch.tensor([0.1, 0.3, 0.5, 0.9, 1.0])


def prune(options, oracle=None, masks=MASKS):
    from backdoorkit.api import ImageSet

    model = Counting().eval()
    labels = torch.arange(5).repeat(2)
    bright = 255 * torch.eye(5, dtype=torch.uint8)[labels][:, :, None, None].expand(-1, -1, 2, 2)
    held_out = ImageSet.from_tensors(bright.contiguous(), labels, num_classes=5)
    context = Context(
        method="test",
        seed=0,
        device=torch.device("cpu"),
        image_shape=(5, 2, 2),
        num_classes=5,
        precision="float32",
        oracle=oracle,
    )
    layers = masked_layers(find_structure(model, (5, 2, 2)), "auto", "test")
    pruned = prune_by_masks(model, layers, masks, options, held_out, context)
    assert torch.equal(model.conv.weight.flatten(1).sum(dim=1) == 0, pruned.units)
    return pruned, context


def test_a_fixed_level_is_taken_as_it_is():
    pruned, _ = prune(Options(selection=Selection.FIXED))
    assert (pruned.level, pruned.units.tolist()) == (0.5, [True, True, True, False, False])
    pruned, _ = prune(Options(selection=Selection.FIXED, prune_by="number"))
    assert (pruned.level, pruned.units.tolist()) == (2, [True, True, False, False, False])
    assert pruned.accuracies == {}


def test_accuracy_on_the_held_out_part_stops_the_sweep():
    # Without unit 0 the head's bias still answers class 0; every further unit costs a fifth.
    pruned, _ = prune(Options())
    assert pruned.level == 0.2
    assert pruned.units.tolist() == [True, False, False, False, False]
    assert pruned.accuracies == pytest.approx({0.0: 1.0, 0.2: 1.0, 0.4: 0.8})
    pruned, _ = prune(Options(prune_by="number", tolerance=0.25))
    assert pruned.level == 2


def test_where_the_lowest_level_costs_too_much_nothing_is_pruned():
    pruned, _ = prune(Options(grid=(0.6, 0.8)))
    assert pruned.level is None
    assert not pruned.units.any()
    pruned, _ = prune(Options(grid=(0.6, 0.8), selection=Selection.ORACLE), oracle=lambda _: 1.0)
    assert pruned.level is None


def test_the_oracle_chooses_among_what_accuracy_allows():
    def success(model):
        return {5: 0.9, 4: 0.3, 3: 0.3, 2: 0.0}[int(model.conv.weight.sum())]

    options = Options(selection=Selection.ORACLE, tolerance=0.25)
    pruned, context = prune(options, oracle=success)
    assert pruned.level == 0.2  # 0.4 does no better, 0.6 costs too much
    assert context.oracle_used
    with pytest.raises(OracleNotPermittedError):
        prune(options)


def test_more_units_than_there_are_cannot_be_pruned():
    with pytest.raises(InputError, match="5 units"):
        prune(Options(selection=Selection.FIXED, prune_by="number", number=5))


def test_choosing_needs_images_to_choose_on():
    model = tiny_network()
    context = tiny_context("test")
    with pytest.raises(ContractError, match="held-out"):
        prune_by_masks(model, layers_of(model), torch.ones(56), Options(), None, context)
