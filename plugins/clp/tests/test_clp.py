"""The defense: what is scored, what is pruned, what is refused."""

from __future__ import annotations

import logging
from typing import ClassVar

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from backdoorkit import Need
from backdoorkit.api import DefenseTask, StructureError, find_structure
from backdoorkit.hooks.options import structure as configure
from backdoorkit.testing import DefenseSuite, tiny_context, tiny_network
from backdoorkit_clp import CLPConfig, backdoorkit_defenses
from backdoorkit_clp._defense import CLP
from backdoorkit_clp._layers import plan_layers

SHAPE = (3, 16, 16)


class TestConformance(DefenseSuite):
    method = "clp"
    config: ClassVar = {"threshold": 1.5}


def clp(model, **options):
    task = DefenseTask(
        method="clp", num_classes=4, image_shape=SHAPE, resources={Need.WEIGHTS: model.eval()}
    )
    return CLP(CLPConfig(**options)).run(task, tiny_context("clp"))


def pruned(model, **options):
    return dict(clp(model, **options).details["pruned"])


class Network(nn.Module):
    """Applies ``rule(self, x)`` to images, then pools and classifies the channels."""

    def __init__(self, rule, channels, **layers):
        super().__init__()
        self.rule = rule
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.head = nn.Linear(channels, 4)

    def forward(self, images):
        return self.head(self.rule(self, images).mean((2, 3)))


def plain(channels=12, outlier=10.0, norm=nn.BatchNorm2d, **norm_options):
    """One 1x1 convolution whose kernels have norm 1, but for channel 3."""
    model = Network(
        lambda m, x: F.relu(m.norm(m.conv(x))),
        channels, conv=nn.Conv2d(3, channels, 1), norm=norm(channels, **norm_options),
    )  # fmt: skip
    with torch.no_grad():
        model.conv.weight.zero_()
        model.conv.weight[:, 0] = 1.0
        model.conv.weight[3] *= outlier
        model.norm.bias.fill_(0.5)
    return model


# -- scores ----------------------------------------------------------------------------------------


def test_the_score_of_a_single_weight_under_a_neutral_norm_is_its_size():
    model = plain()
    model.norm.running_var.fill_(1 - model.norm.eps)
    found = clp(model).tensors["scores.norm"]
    torch.testing.assert_close(found, model.conv.weight[:, 0].flatten().abs())


def test_exactly_the_outlier_of_twelve_channels_is_pruned_and_none_of_ten():
    assert pruned(plain(12)) == {"norm": [3]}
    assert pruned(plain(10)) == {}


def test_scale_doubles_and_variance_halves_the_score():
    reference = clp(plain()).tensors["scores.norm"]
    wider = plain()
    with torch.no_grad():
        wider.norm.weight[5] *= -2
        wider.norm.running_var[6] = 4.0
    found = clp(wider).tensors["scores.norm"]
    torch.testing.assert_close(found[5], 2 * reference[5])
    torch.testing.assert_close(found[6], 0.5 * reference[6], rtol=1e-4, atol=0)
    torch.testing.assert_close(found[:5], reference[:5])


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.conv.weight.mul_(7.0),
        lambda m: m.conv.weight.neg_(),
        lambda m: m.norm.weight.neg_(),
    ],
    ids=["scaled weights", "negated weights", "negated scales"],
)
def test_what_is_common_to_a_layer_changes_no_decision(change):
    model = plain()
    with torch.no_grad():
        change(model)
    assert pruned(model) == {"norm": [3]}


def test_equal_channels_are_all_kept():
    assert pruned(plain(outlier=1.0), threshold=0.0) == {}


def test_a_dead_channel_does_not_protect_its_layer():
    """Without a constant under the root its score is infinite, and the layer would be skipped."""
    model = plain(13)
    model.norm.running_var[7] = 0.0
    result = clp(model, epsilon="none")
    assert result.details["pruned"] == {"norm": [3]}
    assert result.tensors["scores.norm"][7].item() == torch.inf
    assert clp(plain(13), epsilon="norm").tensors["scores.norm"].isfinite().all()


# -- pruning ---------------------------------------------------------------------------------------


def test_a_pruned_channel_is_silent_and_all_else_is_untouched():
    model = plain()
    images = torch.rand(4, *SHAPE)
    with torch.no_grad():
        before = {name: value.clone() for name, value in model.state_dict().items()}
        maps = model.norm.eval()(model.conv(images))
        repaired = clp(model).model
        after = repaired.norm(repaired.conv(images))
    assert after[:, 3].abs().max() == 0
    kept = [k for k in range(12) if k != 3]
    assert torch.equal(after[:, kept], maps[:, kept])
    changed = {n for n, v in repaired.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"norm.weight", "norm.bias"}


def test_without_its_shift_a_pruned_channel_is_constant():
    model = clp(plain(), prune_bias=False).model
    assert model.norm.weight[3] == 0
    assert model.norm.bias[3] == 0.5


def test_a_convolution_without_norm_loses_filter_and_bias():
    def network():
        model = Network(lambda m, x: F.relu(m.conv(x)), 12, conv=nn.Conv2d(3, 12, 3))
        with torch.no_grad():
            model.conv.weight.fill_(0.1)
            model.conv.weight[5] = 3.0
            model.conv.bias.fill_(1.0)
        return model

    repaired = clp(network())
    assert repaired.details["pruned"] == {"conv": [5]}
    assert repaired.model.conv.weight[5].abs().max() == 0
    assert repaired.model.conv.bias.tolist() == [1.0] * 5 + [0.0] + [1.0] * 6
    assert clp(network(), prune_bias=False).model.conv.bias[5] == 1.0
    with pytest.raises(StructureError, match="'conv': no norm reads it"):
        clp(network(), unnormalized=False)


def test_pruning_is_deterministic_and_a_second_pass_is_another_decision():
    """Zeros lower mean and deviation, so the method is applied once."""

    def network():
        model = plain(40)
        with torch.no_grad():
            model.conv.weight[8] *= 4.0
        return model

    model = network()
    assert pruned(model) == pruned(network()) == {"norm": [3]}
    assert pruned(model) == {"norm": [8]}


# -- pairing ---------------------------------------------------------------------------------------


class PreActivation(nn.Module):
    """Block one ends in a projection; the norm of block two reads the sum of both branches."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.conv1 = nn.Conv2d(12, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(12, 16, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        out = F.relu(self.bn1(self.stem(x)))
        out = self.conv2(F.relu(self.bn2(self.conv1(out)))) + self.shortcut(out)
        return self.head(F.relu(self.bn3(out)).mean((2, 3)))


def outlying(layer):
    model = PreActivation()
    with torch.no_grad():
        for convolution in (model.stem, model.conv1, model.conv2, model.shortcut):
            convolution.weight.fill_(0.1)
        getattr(model, layer).weight[9] = 5.0
    return model


def test_registration_order_mistakes_the_projection_for_the_main_branch():
    assert pruned(outlying("conv2")) == {"bn3": [9]}
    assert pruned(outlying("conv2"), pairing="order") == {}
    assert pruned(outlying("shortcut")) == {"bn3": [9]}
    assert pruned(outlying("shortcut"), pairing="order") == {"bn3": [9]}


def test_both_pairings_agree_on_a_plain_network():
    for pairing in ("dataflow", "order"):
        result = clp(tiny_network(), pairing=pairing, threshold=1.5)
        assert set(result.tensors) == {"scores.network.bn1", "scores.network.bn2"}
    by_flow = clp(tiny_network(), threshold=1.5)
    by_order = clp(tiny_network(), pairing="order", threshold=1.5)
    assert by_flow.details["pruned"] == by_order.details["pruned"] != {}


def test_a_norm_after_a_residual_sum_with_a_skip_counts_the_skip():
    def rule(m, x):
        x = F.relu(m.stem(x))
        return m.norm(m.conv(x) + x)

    model = Network(
        rule, 12, stem=nn.Conv2d(3, 12, 1), conv=nn.Conv2d(12, 12, 1, bias=False),
        norm=nn.BatchNorm2d(12, eps=0.0),
    )  # fmt: skip
    nn.init.zeros_(model.conv.weight)
    with torch.no_grad():
        model.conv.weight[4, 0] = 1.0
    found = clp(model).tensors["scores.norm"]
    assert found[4].item() == pytest.approx(2**0.5)
    assert found[5].item() == 1.0


def test_ranges_of_a_concatenation_are_compared_with_each_other():
    def rule(m, x):
        return m.norm(torch.cat([m.left(x), x, m.right(x)], 1))

    model = Network(
        rule, 15, left=nn.Conv2d(3, 6, 1), right=nn.Conv2d(3, 6, 1), norm=nn.BatchNorm2d(15)
    )
    with torch.no_grad():
        for convolution in (model.left, model.right):
            convolution.weight.zero_()
            convolution.weight[:, 0] = 1.0
        model.right.weight[2] *= 20
    assert pruned(model) == {"norm": [11]}


def test_mismatched_neighbours_are_skipped_by_order_and_told():
    model = Network(
        lambda m, x: m.second(m.narrow(F.relu(m.first(m.wide(x))))),
        6, wide=nn.Conv2d(3, 12, 1), narrow=nn.Conv2d(12, 6, 1), first=nn.BatchNorm2d(12),
        second=nn.BatchNorm2d(6),
    )  # fmt: skip
    result = clp(model, pairing="order")
    assert result.details["skipped"] == {"first": "narrow has 6 channels, not 12"}
    assert clp(model).details["skipped"] == {}


# -- what cannot be scored -------------------------------------------------------------------------


def transformer():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torchvision.models.VisionTransformer(16, 4, 2, 2, 32, 64, num_classes=4)


def test_a_transformer_is_refused_unless_the_proxy_is_asked_for():
    defense = CLP(CLPConfig())
    with pytest.raises(StructureError, match=r"VisionTransformer .* layer-norm .* proxy = true"):
        defense.check(find_structure(transformer(), SHAPE))
    with pytest.raises(StructureError, match=r"needs batch norms .*ln_1': it is a layer-norm"):
        clp(transformer(), pairing="order")


def test_pairing_by_order_needs_batch_norms_and_says_so_where_there_is_no_norm():
    model = Network(lambda m, x: m.conv(x), 12, conv=nn.Conv2d(3, 12, 1))
    with pytest.raises(StructureError, match=r"\(it has none\); use pairing = 'dataflow'"):
        clp(model, pairing="order")
    clp(model)


def test_the_proxy_scores_what_writes_to_the_residual_stream_and_says_so():
    model = transformer()
    block = model.encoder.layers[0]
    with torch.no_grad():
        block.mlp[3].weight[20] = 9.0
        block.self_attention.out_proj.weight[6] = 9.0
    result = clp(model, proxy=True, threshold=5.0)
    prefix = "encoder.layers.encoder_layer_0"
    assert result.details["pruned"] == {
        f"{prefix}.self_attention.out_proj": [6],
        f"{prefix}.mlp.3": [20],
    }
    assert f"{prefix}.mlp.3" in result.details["proxies"]
    torch.testing.assert_close(
        result.tensors["scores.encoder.layers.encoder_layer_1.mlp.3"],
        model.encoder.layers[1].mlp[3].weight.detach().norm(dim=1),
    )
    assert block.mlp[3].weight[20].abs().max() == 0
    assert block.self_attention.out_proj.bias[6] == 0


def group_norm(channels):
    return nn.GroupNorm(2, channels)


@pytest.mark.parametrize(
    "norm", [group_norm, lambda c: nn.BatchNorm2d(c, track_running_stats=False)]
)
def test_norms_without_statistics_need_the_proxy(norm):
    with pytest.raises(StructureError, match="without running statistics bounds nothing"):
        clp(plain(norm=norm))
    result = clp(plain(norm=norm), proxy=True)
    assert result.details["pruned"] == {"norm": [3]}
    assert result.details["proxies"] == ["norm"]


def test_a_batch_norm_without_scale_is_pruned_at_the_filters():
    model = Network(
        lambda m, x: m.norm(m.conv(x)),
        12, conv=nn.Conv2d(3, 12, 1), norm=nn.BatchNorm2d(12, affine=False),
    )  # fmt: skip
    with torch.no_grad():
        model.conv.weight.fill_(1.0)
        model.conv.weight[3] *= 10
    assert pruned(model, proxy=True) == {"conv": [3]}


def test_a_network_without_convolutions_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    with pytest.raises(StructureError, match=r"Sequential .* \(it has none\); with proxy"):
        CLP(CLPConfig()).check(find_structure(model, SHAPE))


def test_gates_are_left_alone():
    structure = find_structure(torchvision.models.mobilenet_v3_small(num_classes=4), (3, 32, 32))
    plan = plan_layers(structure, CLPConfig())
    assert len(plan.layers) == 34
    assert set(plan.skipped) == structure.gates


def test_layers_too_small_for_the_threshold_are_told(caplog):
    model = Network(
        lambda m, x: m.large(m.b(F.relu(m.small(m.a(x))))),
        12, a=nn.Conv2d(3, 10, 1), small=nn.BatchNorm2d(10), b=nn.Conv2d(10, 12, 1),
        large=nn.BatchNorm2d(12),
    )  # fmt: skip
    assert clp(model).details["too_small_to_prune"] == ["small"]
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        result = clp(plain(10))
    assert result.details["too_small_to_prune"] == ["norm"]
    assert "nothing can be pruned" in caplog.text


# -- options ---------------------------------------------------------------------------------------


def test_presets_are_valid_and_the_released_code_pairs_by_order():
    (info,) = backdoorkit_defenses()
    configs = {name: configure(info.config, preset) for name, preset in info.presets.items()}
    assert configs["paper"] == CLPConfig()
    assert configs["official"].pairing == "order"
    assert configs["official"] == configs["backdoorbench"]
    assert configs["backdoorbench-tiny"].threshold == 5.0


def test_nothing_but_the_weights_is_asked_for():
    (info,) = backdoorkit_defenses()
    assert info.needs == {Need.WEIGHTS}
