"""The structure finder on hand-made networks whose answers can be read off the code."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoorkit.errors import StructureError, UnknownNameError
from backdoorkit.models.structure import (
    features_and_logits,
    find_structure,
    penultimate_features,
)

SHAPE = (3, 16, 16)


class PostActivationBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        # Registered last-but-run-first on purpose: order of registration must not matter.
        self.projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.projection_norm = nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.projection_norm(self.projection(x))
        return F.relu(out, inplace=True)


class PostActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 10)
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.low = PostActivationBlock(8, 8, 1)
        self.middle = PostActivationBlock(8, 12, 2)
        self.high = PostActivationBlock(12, 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.high(self.middle(self.low(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Normalized(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))
        self.register_buffer("std", torch.full((1, 3, 1, 1), 0.25))

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)


class Attention(nn.Module):
    """Squeeze and excitation: factors per channel, made by 1x1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 1, 1)
        self.squeeze = nn.Conv2d(8, 2, 1)
        self.excite = nn.Conv2d(2, 8, 1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))).sigmoid()
        return self.fc((x * gate).mean((2, 3)))


def plain(last: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 20), nn.ReLU(), nn.Dropout(0.5), last or nn.Linear(20, 10),
    )  # fmt: skip


# -- head and features -----------------------------------------------------------------------------


def test_head_is_the_last_linear_layer_to_run_not_to_be_registered():
    structure = find_structure(PostActivation(), SHAPE, 10)
    assert structure.head == "linear"
    assert structure.feature_dim == 16
    assert structure.num_classes == 10


def test_a_normalising_wrapper_only_adds_its_prefix():
    bare = find_structure(PostActivation(), SHAPE)
    wrapped = find_structure(Normalized(PostActivation()), SHAPE)
    assert wrapped.head == f"network.{bare.head}"
    assert wrapped.stages == tuple(f"network.{name}" for name in bare.stages)
    assert wrapped.trunk == tuple(f"network.{name}" for name in bare.trunk)
    assert wrapped.last_convolution == f"network.{bare.last_convolution}"
    assert wrapped.shortcuts == {f"network.{name}" for name in bare.shortcuts}
    assert wrapped.network == bare.network == "PostActivation"


def test_head_is_found_through_functions_of_the_logits():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = plain()

        def forward(self, x: Tensor) -> Tensor:
            return F.log_softmax(self.network(x) / 0.5, dim=1)

    assert find_structure(Scaled(), SHAPE).head == "network.13"


def test_features_are_the_inputs_of_the_head_and_carry_gradients():
    network = plain().eval()
    structure = find_structure(network, SHAPE)
    images = torch.rand(3, *SHAPE, requires_grad=True)
    features, logits = features_and_logits(network, images, structure)
    torch.testing.assert_close(features, network[:-1](images))
    torch.testing.assert_close(logits, network[-1](features))
    features.sum().backward()
    assert images.grad is not None
    assert not network[-1]._forward_pre_hooks


def test_features_of_tokens_are_averaged():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(2).transpose(1, 2)).mean(1)

    network, images = Tokens(), torch.rand(2, *SHAPE)
    structure = find_structure(network, SHAPE)
    features, logits = structure.features_and_logits(network, images)
    torch.testing.assert_close(features, images.mean((2, 3)))
    torch.testing.assert_close(logits, network.fc(features))


def test_features_before_any_forward_are_an_error():
    with (
        penultimate_features(plain(), "13") as capture,
        pytest.raises(StructureError, match="call the model first"),
    ):
        _ = capture.features


def test_a_structure_of_another_network_is_refused():
    structure = find_structure(PostActivation(), SHAPE)
    with pytest.raises(StructureError, match="no layer 'linear'"):
        structure.features_and_logits(plain(), torch.rand(1, *SHAPE))


# -- trunk, stages, main branch --------------------------------------------------------------------


def test_stages_are_the_last_module_at_each_resolution():
    structure = find_structure(PostActivation(), SHAPE)
    assert structure.trunk == ("conv1", "bn1", "low", "middle", "high", "linear")
    assert structure.stages == ("low", "middle", "high")
    assert structure.require_stages("nad", 2) == ("middle", "high")


def test_a_map_of_one_pixel_is_no_stage():
    structure = find_structure(PostActivation(), (3, 4, 4))
    assert structure.stages == ("low", "middle")
    with pytest.raises(StructureError, match=r"nad needs 3 stages .* 2 \('low', 'middle'\)"):
        structure.require_stages("nad", 3)


def test_what_nothing_was_learnt_for_is_no_stage():
    class Halved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - 0.5) / 0.5

    network = nn.Sequential(
        Halved(), nn.Conv2d(3, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
    assert find_structure(network, SHAPE).stages == ("1",)


def test_maps_are_kept_from_before_an_in_place_activation():
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    network = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval()
    structure = find_structure(network, SHAPE)
    images = torch.rand(2, *SHAPE)
    with structure.feature_maps(network, ["0.1", "0.2"]) as maps:
        network(images)
    torch.testing.assert_close(maps["0.1"], body[1](body[0](images)))
    assert maps["0.1"].min() < 0 <= maps["0.2"].min()
    assert not any(module._forward_hooks for module in network.modules())


def test_shortcuts_are_found_by_where_their_outputs_go():
    structure = find_structure(PostActivation(), SHAPE)
    assert structure.shortcuts == {f"{b}.projection" for b in ("low", "middle", "high")}
    on_shortcut = {layer.name for layer in structure.prunable if layer.is_shortcut}
    assert on_shortcut == structure.shortcuts | {f"{name}_norm" for name in structure.shortcuts}
    assert structure.last_convolution == "high.conv2"


def test_of_two_single_layers_the_smaller_kernel_is_the_shortcut():
    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small = nn.Conv2d(3, 8, 1)
            self.large = nn.Conv2d(3, 8, 3, padding=1)
            self.fc = nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.large(x) + self.small(x)
            return self.fc(x.mean((2, 3)))

    assert find_structure(Parallel(), SHAPE).shortcuts == {"small"}


def test_layers_that_only_make_factors_are_gates():
    structure = find_structure(Attention(), SHAPE)
    assert structure.gates == {"squeeze", "excite"}
    assert structure.last_convolution == "conv"


# -- prunable layers -------------------------------------------------------------------------------


def test_prunable_layers_name_their_parameters_in_registration_order():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.Flatten(),
        nn.LayerNorm(8 * 14 * 14), nn.Linear(8 * 14 * 14, 10),
    )  # fmt: skip
    layers = find_structure(network, SHAPE).prunable
    assert [(layer.name, layer.kind, layer.units) for layer in layers] == [
        ("0", "conv", 8),
        ("1", "batch-norm", 8),
        ("2", "group-norm", 8),
        ("4", "layer-norm", 1568),
        ("5", "linear", 10),
    ]
    assert layers[0].parameters == ("0.weight",)
    assert layers[1].parameters == ("1.weight", "1.bias")
    assert [layer.is_head for layer in layers] == [False] * 4 + [True]
    assert [layer.is_norm for layer in layers] == [False, True, True, True, False]
    for layer in layers:
        assert len(network.get_parameter(layer.weight)) == layer.units


def test_attention_offers_its_input_rows_and_its_output_projection():
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(3, 1, batch_first=True)
            self.head = nn.Linear(3, 10)

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))

    structure = find_structure(Attending(), (3, 4, 4))
    rows = {layer.name: (layer.kind, layer.units, layer.weight) for layer in structure.prunable}
    assert rows == {
        "attention.in_proj": ("attention", 9, "attention.in_proj_weight"),
        "attention.out_proj": ("linear", 3, "attention.out_proj.weight"),
        "head": ("linear", 10, "head.weight"),
    }
    assert structure.layer("attention.in_proj").bias == "attention.in_proj_bias"


def test_shared_weights_appear_once_and_unused_layers_not_at_all():
    class Sharing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(3, 3, 3)
            self.two = nn.Conv2d(3, 3, 3)
            self.two.weight = self.one.weight
            self.unused = nn.Conv2d(3, 3, 3)
            self.head = nn.Linear(3, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.two(self.one(x)).mean((2, 3)))

    names = [layer.name for layer in find_structure(Sharing(), SHAPE).prunable]
    assert names == ["one", "head"]


def test_layers_leave_out_shortcuts_and_head_unless_asked():
    structure = find_structure(PostActivation(), SHAPE)
    assert len(structure.layers("conv")) == 7
    assert len(structure.layers("conv", shortcuts=True)) == 10
    assert structure.layers("linear") == ()
    assert [layer.name for layer in structure.layers("linear", head=True)] == ["linear"]
    assert len(structure.require_layers("tsbd", "conv", "batch-norm")) == 14
    with pytest.raises(StructureError, match="rnp needs group-norm layers, and PostActivation"):
        structure.require_layers("rnp", "group-norm")
    with pytest.raises(UnknownNameError, match=r"did you mean 'low\.conv1'"):
        structure.layer("low.conv11")


# -- the model is left alone -----------------------------------------------------------------------


def test_the_model_and_the_random_state_are_untouched():
    network = PostActivation().train()
    network.low.bn1.eval()
    network.conv1.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    find_structure(network, SHAPE)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in network.modules()] == modes
    assert not network.conv1.weight.requires_grad
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_the_dry_forward_is_in_eval_mode_whatever_the_model_is_in():
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = plain()

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            logits = self.network(x)
            return (logits, logits) if self.training else logits

    assert find_structure(Auxiliary().train(), SHAPE).head == "network.13"


def test_half_precision_models_are_read_in_single():
    network = plain().to(torch.bfloat16)
    assert find_structure(network, SHAPE).head == "13"
    assert next(network.parameters()).dtype is torch.bfloat16


def test_a_network_that_draws_random_numbers_does_not_move_the_global_state():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = plain()

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x + 0.1 * torch.randn_like(x))

    network = Noisy()
    state = torch.get_rng_state()
    assert find_structure(network, SHAPE).head == "network.13"
    assert torch.equal(torch.get_rng_state(), state)


# -- refusals --------------------------------------------------------------------------------------


def test_another_number_of_classes_is_refused():
    with pytest.raises(StructureError, match=r"returns 10 logits per image, .* 43 classes"):
        find_structure(plain(), SHAPE, 43)


def test_images_the_model_cannot_take_are_refused_with_its_own_reason():
    with pytest.raises(StructureError, match=r"2 images of 1 x 16 x 16 failed .*channels"):
        find_structure(plain(), (1, 16, 16))


def test_a_model_that_returns_no_logits_is_refused():
    with pytest.raises(StructureError, match=r"N x K, but returned \(2, 8, 14, 14\)"):
        find_structure(nn.Sequential(nn.Conv2d(3, 8, 3)), SHAPE)


def test_a_model_that_cannot_be_copied_is_refused():
    network = plain()
    network.kept = network[0].weight * 2
    with pytest.raises(StructureError, match="cannot be copied"):
        find_structure(network, SHAPE)
