"""The core's architectures: shapes, sizes, names of their layers, and what they refuse."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch
from torch import nn

from backdoorkit.errors import ConfigError, InputError, UnknownNameError
from backdoorkit.hooks.options import structure
from backdoorkit.models.catalog import backdoorkit_models
from backdoorkit.models.normalized import NormalizedModel

#: small ones, so that a test takes milliseconds
SMALL = {
    "preact-resnet-18": {"width": 8},
    "resnet-18": {"width": 8},
    "resnet-34": {"width": 4},
    "wrn-16-1": {},
    "wrn-40-2": {},
    "vgg-19-bn": {},
    "small-cnn": {"width": 8},
    "vit": {"dim": 24, "depth": 2, "heads": 3},
    "torchvision": {"architecture": "shufflenet_v2_x0_5"},
}
OWN = [name for name in SMALL if name != "torchvision"]


def build(name, image_shape=(3, 32, 32), num_classes=10, **values):
    info = next(info for info in backdoorkit_models() if info.name == name)
    module, _, class_name = info.implementation.partition(":")
    architecture = getattr(importlib.import_module(module), class_name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return architecture(structure(info.config, values)).build(image_shape, num_classes)


def size(network):
    return sum(parameter.numel() for parameter in network.parameters())


def names(network):
    return set(network.state_dict())


# -- what all have in common -----------------------------------------------------------------------


def test_catalogue_is_light_and_complete():
    code = (
        "import sys; from backdoorkit.models import catalog; "
        "print(*(info.name for info in catalog.backdoorkit_models())); "
        "assert not {'torch', 'torchvision', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {*SMALL, "callable"}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32)])
def test_logits_and_gradients_of_all_parameters(name, channels, side):
    network = build(name, (channels, side, side), 7, **SMALL[name])
    assert network.training
    images = torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(1))
    logits = network(images)
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", SMALL)
def test_an_image_is_answered_alike_alone_and_in_company(name):
    network = build(name, (3, 16, 16), 5, **SMALL[name]).eval()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(network(images[:1]), network(images)[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["preact-resnet-18", "wrn-16-1", "small-cnn", "vgg-19-bn"])
@pytest.mark.parametrize("shape", [(3, 28, 28), (3, 64, 64), (4, 20, 12)])
def test_other_sizes_and_channels_pass_through_convolutions(name, shape):
    network = build(name, shape, 3, **SMALL[name]).eval()
    assert network(torch.zeros(1, *shape)).shape == (1, 3)


@pytest.mark.parametrize("name", SMALL)
def test_initial_weights_follow_the_seed(name):
    first, second = (build(name, (3, 16, 16), **SMALL[name]) for _ in range(2))
    for (key, value), other in zip(
        first.state_dict().items(), second.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), key


@pytest.mark.parametrize("name", ["preact-resnet-18", "resnet-18", "wrn-16-1", "vgg-19-bn"])
def test_signal_keeps_its_size_through_an_untrained_network(name):
    """Kaiming's point: depth alone neither blows activations up nor lets them vanish."""
    network = build(name, **SMALL[name])
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    assert 0.01 < network(images).std().item() < 10


def test_convolutions_have_the_deviation_of_kaiming_fan_out():
    network = build("preact-resnet-18")
    weight = network.layer3[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)


@pytest.mark.parametrize("name", OWN)
def test_images_too_small_are_refused_in_one_line(name):
    with pytest.raises(InputError, match=r"takes images of at least") as caught:
        build(name, (3, 3, 32), **SMALL[name])
    assert "3 x 3 x 32" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", OWN)
def test_a_single_class_is_refused(name):
    with pytest.raises(InputError, match="at least 2 classes, not 1"):
        build(name, num_classes=1, **SMALL[name])


# -- known sizes and names -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("preact-resnet-18", 11_171_146),
        ("resnet-18", 11_173_962),
        ("resnet-34", 21_282_122),
        ("wrn-16-1", 175_066),
        ("wrn-40-2", 2_243_546),
        ("vgg-19-bn", 20_040_522),
    ],
)
def test_published_parameter_counts(name, parameters):
    with torch.device("meta"):
        assert size(build(name)) == parameters


def test_wide_resnet_has_the_names_of_published_checkpoints():
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", "fc.weight", "fc.bias", *(f"bn1.{part}" for part in norm)}
    for block in (1, 2, 3):
        for layer in (0, 1):
            prefix = f"block{block}.layer.{layer}"
            expected |= {f"{prefix}.bn{n}.{part}" for n in (1, 2) for part in norm}
            expected |= {f"{prefix}.conv{n}.weight" for n in (1, 2)}
    # Widening factor 1 keeps the stem's 16 channels in the first stage.
    expected |= {f"block{block}.layer.0.convShortcut.weight" for block in (2, 3)}
    assert names(build("wrn-16-1")) == expected


def test_wider_resnet_projects_in_the_first_stage_too():
    shortcuts = {name for name in names(build("wrn-40-2")) if "convShortcut" in name}
    assert shortcuts == {f"block{block}.layer.0.convShortcut.weight" for block in (1, 2, 3)}


def test_resnet_and_preact_have_the_names_of_cifar_code():
    resnet, preact = (names(build(name, width=4)) for name in ("resnet-18", "preact-resnet-18"))
    assert {
        "conv1.weight",
        "bn1.running_var",
        "layer1.1.conv2.weight",
        "layer2.0.shortcut.0.weight",
        "layer2.0.shortcut.1.running_mean",
        "layer4.1.bn2.bias",
        "linear.bias",
    } <= resnet
    assert not any(name.startswith("layer1.0.shortcut") for name in resnet)
    assert {"conv1.weight", "layer2.0.shortcut.0.weight", "linear.weight"} <= preact
    assert not any(name.startswith("bn") or "shortcut.1" in name for name in preact)
    assert (len(resnet), len(preact)) == (122, 102)


def test_vgg_has_its_layers_in_one_sequence():
    network = build("vgg-19-bn")
    convolutions = [m for m in network.features if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == ([64] * 2 + [128] * 2 + [256] * 4 + [512] * 8)
    assert {"features.0.bias", "features.1.running_mean", "classifier.weight"} <= names(network)


# -- arithmetic ------------------------------------------------------------------------------------


def test_preact_features_are_signed_unless_the_final_norm_is_asked_for():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    lows = []
    for final_norm in (False, True):
        network = build("preact-resnet-18", width=8, final_norm=final_norm)
        network.linear = nn.Identity()
        lows.append(network(images).min().item())
        assert ("bn.weight" in names(network)) is final_norm
    assert lows[0] < 0
    assert lows[1] >= 0


@pytest.mark.parametrize("name", ["preact-resnet-18", "wrn-16-1"])
def test_projection_takes_the_activated_input(name):
    network = build(name, **SMALL[name])
    block = network.layer2[0] if name.startswith("preact") else network.block2.layer[0]
    projection = block.shortcut if name.startswith("preact") else block.convShortcut
    seen = []
    projection.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    features = torch.randn(2, block.bn1.num_features, 8, 8)
    block(features)
    torch.testing.assert_close(seen[0], block.bn1(features).relu())


def test_wide_block_without_projection_adds_its_raw_input():
    block = build("wrn-16-1").block1.layer[0]
    nn.init.zeros_(block.conv2.weight)
    features = torch.randn(2, 16, 4, 4)
    assert torch.equal(block(features), features)


def test_transformer_uses_the_order_of_patches():
    network = build("vit", (1, 8, 8), dim=24, depth=1).eval()
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    swapped = torch.cat((image[..., 4:], image[..., :4]), dim=-1)
    with torch.no_grad():
        assert not torch.allclose(network(image), network(swapped), atol=1e-6)
        network.positions.zero_()
        torch.testing.assert_close(network(image), network(swapped))
    assert isinstance(network.blocks[0].attention, nn.MultiheadAttention)


# -- options ---------------------------------------------------------------------------------------


def test_small_network_grows_with_its_options():
    network = build("small-cnn", (1, 16, 16), width=4, stages=4)
    widths = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [4, 4, 8, 8, 16, 16, 32, 32]


def test_small_network_refuses_more_halvings_than_the_image_has():
    with pytest.raises(InputError, match="5 stages takes images of at least 1 x 16 x 16"):
        build("small-cnn", (1, 8, 8), stages=5)


def test_transformer_refuses_patches_that_do_not_tile_the_image():
    with pytest.raises(InputError, match=r"patches of 5 x 5 .* set patch_size to a divisor"):
        build("vit", patch_size=5)


def test_transformer_refuses_a_dim_that_heads_do_not_divide():
    with pytest.raises(ConfigError, match="dim 100 must be a multiple of heads 3"):
        build("vit", dim=100)


# -- networks of others ----------------------------------------------------------------------------


def test_torchvision_grey_images_get_a_stem_of_one_channel():
    network = build("torchvision", (1, 32, 32), 4, architecture="mobilenet_v2")
    stem = network.features[0][0]
    assert (stem.in_channels, stem.out_channels, stem.stride) == (1, 32, (2, 2))
    assert network.classifier[1].out_features == 4


def test_torchvision_transformers_are_made_for_the_size_of_the_images():
    network = build("torchvision", (3, 32, 32), 4, architecture="vit_b_32")
    assert network.image_size == 32


def test_torchvision_names_the_nearest_architecture():
    with pytest.raises(UnknownNameError, match="did you mean 'mobilenet_v2'"):
        build("torchvision", architecture="mobilenetv2")


@pytest.mark.parametrize(
    ("architecture", "shape"), [("alexnet", (3, 8, 8)), ("vit_b_16", (3, 24, 24))]
)
def test_torchvision_refuses_sizes_that_do_not_pass_in_one_line(architecture, shape):
    with pytest.raises(InputError, match=f"torchvision's {architecture} ") as caught:
        build("torchvision", shape, architecture=architecture)
    assert "\n" not in str(caught.value)


MODULE = """
from torch import nn

def plain(num_classes):
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, num_classes))

def fitted(num_classes, image_shape):
    channels, height, width = image_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes))

def broken(num_classes):
    raise RuntimeError("no\\nluck")

def wrong_type(num_classes):
    return num_classes

def wrong_logits(num_classes):
    return nn.Flatten()

number = 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_networks"
    sys.modules.pop("own_networks", None)


def test_callable_is_given_the_number_of_classes(own_module):
    network = build("callable", (3, 8, 8), 6, target=f"{own_module}:plain")
    assert network.training
    assert network[1].num_batches_tracked == 0
    assert network(torch.rand(2, 3, 8, 8)).shape == (2, 6)


def test_callable_is_given_the_image_shape_if_it_wants_it(own_module):
    network = build("callable", (1, 6, 5), 3, target=f"{own_module}:fitted")
    assert network[1].in_features == 30


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("no_such_module_x:f", "cannot import no_such_module_x .* PYTHONPATH"),
        ("own_networks:plian", "no function of own_networks is called 'plian'.*'plain'"),
        ("own_networks:number", "must be a function, not int"),
        ("own_networks:broken", r"broken\(num_classes=4\) failed: RuntimeError: no luck"),
        ("own_networks:wrong_type", r"must return a torch.nn.Module, not int"),
        ("own_networks:wrong_logits", r"logits of shape \(2, 4\) .* not \(2, 192\)"),
        ("own_networks:plain", "fails on images of 1 x 8 x 8"),
    ],
)
def test_callable_that_cannot_be_used_is_one_clear_line(own_module, target, fault):
    shape = (1, 8, 8) if target.endswith(":plain") else (3, 8, 8)
    with pytest.raises(InputError, match=fault) as caught:
        build("callable", shape, 4, target=target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["module", "module:", ":f", "a b:f", "os:system('x')"])
def test_callable_target_must_be_an_import_path(target):
    with pytest.raises(ConfigError, match=r"target must read package\.module:function"):
        build("callable", target=target)


def test_network_behind_its_normalisation_still_answers():
    model = NormalizedModel(build("small-cnn", (1, 8, 8), width=8), [0.5], [0.25])
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)
