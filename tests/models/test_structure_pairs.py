"""Which norm reads which convolutions, on networks where registration order would mislead."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoorkit.errors import StructureError
from backdoorkit.models.structure import Structure, find_structure

SHAPE = (3, 8, 8)


def pairs(network: nn.Module) -> dict[str | None, list[tuple[tuple[str, ...], bool]]]:
    found: dict[str | None, list[tuple[tuple[str, ...], bool]]] = {}
    for pair in find_structure(network, SHAPE).conv_norm_pairs:
        found.setdefault(pair.norm_name, []).append((pair.conv_names, pair.has_identity))
    return found


class PreActivationBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        if inputs != outputs:
            self.project = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = self.project(out) if hasattr(self, "project") else x
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.first = PreActivationBlock(8, 8, 1)
        self.second = PreActivationBlock(8, 12, 2)
        self.third = PreActivationBlock(12, 12, 1)
        self.linear = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.third(self.second(self.first(self.conv1(x))))
        return self.linear(F.avg_pool2d(x, 4).flatten(1))


def test_pre_activation_norms_are_paired_with_the_sums_they_read():
    assert pairs(PreActivation()) == {
        # The stem feeds the first norm and, as the skip, the first sum.
        "first.bn1": [(("conv1",), False)],
        "first.bn2": [(("first.conv1",), False)],
        "second.bn1": [(("first.conv2",), True)],
        "second.bn2": [(("second.conv1",), False)],
        "third.bn1": [(("second.conv2", "second.project"), False)],
        "third.bn2": [(("third.conv1",), False)],
        None: [(("third.conv2",), False)],
    }


def test_pre_activation_projection_is_a_shortcut_and_the_last_convolution_is_not():
    structure = find_structure(PreActivation(), SHAPE)
    assert structure.shortcuts == {"second.project"}
    assert structure.last_convolution == "third.conv2"


class Custom(nn.Module):
    """Applies ``rule(self, x)`` to images, then pools and classifies ``channels``."""

    def __init__(self, rule, channels: int, **layers: nn.Module) -> None:
        super().__init__()
        self.rule = rule
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rule(self, x).mean((2, 3)))


def conv(inputs: int, outputs: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2)


def test_plain_pairs_follow_execution_not_registration():
    network = Custom(
        lambda m, x: m.norm_b(m.b(F.relu(m.norm_a(m.a(x))))),
        6, norm_b=nn.BatchNorm2d(6), b=conv(4, 6), norm_a=nn.BatchNorm2d(4), a=conv(3, 4),
    )  # fmt: skip
    assert pairs(network) == {"norm_a": [(("a",), False)], "norm_b": [(("b",), False)]}


def test_activation_and_pooling_between_convolution_and_norm_are_followed():
    network = Custom(
        lambda m, x: m.norm(F.max_pool2d(F.dropout(F.leaky_relu(m.a(x)), 0.5, False), 2)),
        4, a=conv(3, 4), norm=nn.BatchNorm2d(4),
    )  # fmt: skip
    assert pairs(network) == {"norm": [(("a",), False)]}


def test_a_convolution_without_norm_stands_alone():
    network = Custom(lambda m, x: F.relu(m.b(F.relu(m.a(x)))), 6, a=conv(3, 4), b=conv(4, 6))
    structure = find_structure(network, SHAPE)
    assert pairs(network) == {None: [(("a",), False), (("b",), False)]}
    assert [pair.channels for pair in structure.conv_norm_pairs] == [4, 6]
    with pytest.raises(StructureError, match=r"clp needs .* none: it has no norm layer"):
        structure.require_pairs("clp")


def test_three_branches_summed_in_two_steps_are_one_sum():
    network = Custom(
        lambda m, x: m.norm((m.a(x) + m.b(x)) + 0.5 * m.c(x)),
        4, a=conv(3, 4), b=conv(3, 4, 1), c=conv(3, 4, 5), norm=nn.BatchNorm2d(4),
    )  # fmt: skip
    assert pairs(network) == {"norm": [(("a", "b", "c"), False)]}


def test_in_place_sums_are_followed():
    def rule(m: nn.Module, x: Tensor) -> Tensor:
        out = m.a(x)
        out += m.b(x)
        return m.norm(out)

    network = Custom(rule, 4, a=conv(3, 4), b=conv(3, 4, 1), norm=nn.BatchNorm2d(4))
    assert pairs(network) == {"norm": [(("a", "b"), False)]}


def test_concatenated_convolutions_feed_ranges_of_the_norm():
    network = Custom(
        lambda m, x: m.norm(torch.cat([m.a(x), x, m.b(x)], 1)),
        10, a=conv(3, 4), b=conv(3, 3, 1), norm=nn.BatchNorm2d(10),
    )  # fmt: skip
    found = find_structure(network, SHAPE).conv_norm_pairs
    assert [(p.conv_names, p.start, p.channels, p.has_identity) for p in found] == [
        (("a",), 0, 4, False),
        ((), 4, 3, True),
        (("b",), 7, 3, False),
    ]


def test_a_norm_that_reads_no_convolution_is_reported_with_the_reason():
    network = Custom(
        lambda m, x: m.again(F.relu(m.norm(m.a(m.input_norm(x))))),
        4, input_norm=nn.BatchNorm2d(3), a=conv(3, 4), norm=nn.BatchNorm2d(4),
        again=nn.BatchNorm2d(4),
    )  # fmt: skip
    structure = find_structure(network, SHAPE)
    assert structure.unpaired_norms == {
        "input_norm": "it reads the images themselves",
        "again": "it reads what batch_norm (norm) made",
    }
    assert pairs(network) == {"norm": [(("a",), False)]}


def test_shuffled_channels_are_not_paired():
    def rule(m: nn.Module, x: Tensor) -> Tensor:
        x = m.a(x)
        shuffled = x.view(len(x), 2, 2, 8, 8).transpose(1, 2).reshape(x.shape)
        return m.norm(shuffled)

    network = Custom(rule, 4, a=conv(3, 4), norm=nn.BatchNorm2d(4))
    assert pairs(network) == {None: [(("a",), False)]}


def test_linear_layers_before_a_norm_are_paired_too():
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)
    )
    assert pairs(network) == {"2": [(("1",), False)]}


def only_pair(norm: nn.Module) -> Structure:
    return find_structure(Custom(lambda m, x: m.norm(m.a(x)), 4, a=conv(3, 4), norm=norm), SHAPE)


@pytest.mark.parametrize(
    ("norm", "kind", "is_foldable", "reason"),
    [
        (nn.BatchNorm2d(4), "batch-norm", True, None),
        (nn.BatchNorm2d(4, track_running_stats=False), "batch-norm", False, "running statistics"),
        (nn.BatchNorm2d(4, affine=False), "batch-norm", False, "no scale of its own"),
        (nn.GroupNorm(2, 4), "group-norm", False, "'norm' is a group-norm"),
    ],
)
def test_only_batch_norm_with_statistics_and_scale_can_be_folded(norm, kind, is_foldable, reason):
    structure = only_pair(norm)
    (pair,) = structure.conv_norm_pairs
    assert (pair.norm_kind, pair.is_foldable) == (kind, is_foldable)
    if reason is None:
        assert structure.require_pairs("clp") == (pair,)
    else:
        with pytest.raises(StructureError, match=reason):
            structure.require_pairs("clp")


def test_layer_norm_over_the_last_axis_is_paired_through_the_permutation():
    network = Custom(
        lambda m, x: m.norm(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        4, a=conv(3, 4), norm=nn.LayerNorm(4),
    )  # fmt: skip
    (pair,) = find_structure(network, SHAPE).conv_norm_pairs
    assert (pair.conv_names, pair.norm_kind) == (("a",), "layer-norm")


def test_weights_computed_by_a_parametrisation_are_followed_but_not_prunable():
    network = Custom(
        lambda m, x: m.norm(m.a(x)),
        4, a=nn.utils.parametrizations.spectral_norm(conv(3, 4)), norm=nn.BatchNorm2d(4),
    )  # fmt: skip
    assert pairs(network) == {"norm": [(("a",), False)]}
    layers = find_structure(network, SHAPE).prunable
    assert [layer.name for layer in layers] == ["norm", "head"]
