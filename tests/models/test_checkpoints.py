"""Weights from files: found whatever they are wrapped in, and put only where they fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune

from backdoorkit.errors import InputError
from backdoorkit.models import checkpoints
from backdoorkit.models._preact import PreActResNet
from backdoorkit.models._small import SmallCNN
from backdoorkit.models._wide_resnet import WideResNet
from backdoorkit.models.checkpoints import (
    infer_architecture,
    infer_num_classes,
    load_weights,
    read_weights,
    save_weights,
)
from backdoorkit.models.normalized import NormalizedModel

OLD_FORMAT = {"_use_new_zipfile_serialization": False}


def small(in_channels=3, num_classes=10, width=4):
    return SmallCNN(width, 2, in_channels, num_classes)


def same(first, second):
    return list(first) == list(second) and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def weights():
    return small().state_dict()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "victim.pt"


# -- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_new_format", [True, False])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"state_dict": w, "epoch": 3},
        lambda w: {"net": w, "acc": 84.4},
        lambda w: {"model_state_dict": w, "optimizer": {"state": {}, "param_groups": [{"lr": 1}]}},
        lambda w: {"epoch": 1, "model": {"state_dict": w}},
        lambda w: {f"module.{name}": value for name, value in w.items()},
        lambda w: {"net": {f"module._orig_mod.{name}": value for name, value in w.items()}},
        lambda w: {name: nn.Parameter(v, v.is_floating_point()) for name, v in w.items()},
    ],
)
def test_weights_are_found_in_what_training_scripts_write(weights, path, wrap, is_new_format):
    torch.save(wrap(weights), path, _use_new_zipfile_serialization=is_new_format)
    read = read_weights(path)
    assert same(read, weights)
    assert all(type(value) is torch.Tensor and not value.requires_grad for value in read.values())


def test_numpy_scalars_beside_the_weights_do_no_harm(weights, path):
    beside = {"best": np.float64(91.2), "epoch": np.int64(3), "loss": np.float32(0.1)}
    torch.save({"state_dict": weights, **beside}, path)
    assert same(read_weights(path), weights)


def test_numpy_scalars_are_known_by_their_old_name_too(path):
    torch.save({"net": {"w": torch.ones(2)}, "best": np.float64(1)}, path)
    old = path.with_suffix(".pth")
    torch.save({"net": {"w": torch.ones(2)}, "best": np.float64(1)}, old, **OLD_FORMAT)
    content = old.read_bytes()
    assert b"numpy._core.multiarray" in content
    old.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_weights(old)["w"].tolist() == [1, 1]


def test_a_part_named_like_the_prefix_is_left_alone(path):
    torch.save({"module.w": torch.ones(1), "fc.w": torch.ones(1)}, path)
    assert list(read_weights(path)) == ["module.w", "fc.w"]


def test_pruning_masks_are_applied(path):
    layer = nn.Linear(6, 3)
    prune.l1_unstructured(layer, "weight", amount=5)
    torch.save(layer.state_dict(), path)
    read = read_weights(path)
    assert set(read) == {"weight", "bias"}
    assert torch.equal(read["weight"], layer.weight)
    assert int((read["weight"] == 0).sum()) == 5


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ([1, 2], "holds a list where named tensors"),
        (torch.ones(3), "holds a Tensor where named tensors"),
        ({}, "holds no weights: it is empty"),
        ({"epoch": 3, "lr": 0.1}, "holds no weights: it has 'epoch', 'lr'; weights are looked for"),
        ({"w": torch.ones(1), "steps": 3}, r"more than dense tensors: 'steps' \(int\)"),
        ({"w": torch.ones(1), 3: torch.ones(1)}, "more than dense tensors: '3'"),
        ({"a": torch.tensor([1.0, float("nan")])}, "NaN or infinite numbers in 'a'"),
        ({"a": torch.tensor([float("inf")])}, "NaN or infinite numbers in 'a'"),
    ],
)
def test_files_without_usable_weights_are_refused(path, content, fault):
    torch.save(content, path)
    with pytest.raises(InputError, match=fault):
        read_weights(path)


# -- writing ---------------------------------------------------------------------------------------


def test_what_is_saved_is_read_again(tmp_path):
    model = NormalizedModel(small(), [0.1, 0.2, 0.3], [1, 2, 3])
    file = tmp_path / "model.safetensors"
    save_weights(file, model)
    read = read_weights(file)
    assert {name: v.dtype for name, v in read.items()} == {
        name: v.dtype for name, v in model.state_dict().items()
    }
    assert all(torch.equal(read[name], value) for name, value in model.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_shared_and_transposed_tensors_can_be_saved(tmp_path):
    value = torch.arange(6.0).reshape(2, 3)
    file = tmp_path / "w.safetensors"
    save_weights(file, {"a": value, "b": value.T, "c": value})
    assert torch.equal(load_file(file)["b"], value.T)


def test_a_failed_save_leaves_the_former_file(tmp_path, monkeypatch):
    file = tmp_path / "w.safetensors"
    save_weights(file, {"a": torch.ones(2)})

    def fill_the_disk(_, partial, **__):
        partial.write_bytes(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr(checkpoints, "save_file", fill_the_disk)
    with pytest.raises(OSError, match="no space left"):
        save_weights(file, {"a": torch.zeros(2)})
    assert read_weights(file)["a"].tolist() == [1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


# -- loading ---------------------------------------------------------------------------------------


def test_loading_makes_the_same_network(weights, path):
    network = small()
    load_weights(network, weights, path=path)
    assert same(network.state_dict(), weights)


def test_loading_converts_to_the_type_of_the_network(weights, path):
    network = small()
    halves = {n: v.half() if v.is_floating_point() else v for n, v in weights.items()}
    load_weights(network, halves, path=path)
    assert network.linear.weight.dtype == torch.float32
    torch.testing.assert_close(network.linear.weight, weights["linear.weight"], atol=1e-3, rtol=0)


def test_files_without_step_counters_are_taken(weights, path):
    old = {n: v for n, v in weights.items() if not n.endswith("num_batches_tracked")}
    network = small()
    load_weights(network, old, path=path)
    assert torch.equal(network.linear.weight, weights["linear.weight"])


def test_normalised_model_takes_bare_weights_and_keeps_its_statistics(weights, path):
    model = NormalizedModel(small(), [0.5] * 3, [0.25] * 3)
    load_weights(model, weights, path=path)
    assert same(model.network.state_dict(), weights)
    assert model.mean.tolist() == [0.5] * 3


def test_normalised_model_takes_over_stored_statistics(path):
    stored = NormalizedModel(small(), [0.1] * 3, [0.75] * 3)
    model = NormalizedModel(small(), [0.5] * 3, [0.25] * 3)
    load_weights(model, stored.state_dict(), path=path)
    assert same(model.state_dict(), stored.state_dict())


def refusal(network, weights, path):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_weights(network, weights, path=path)
    assert same(network.state_dict(), before)  # all or nothing
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path} does not fit the network: ")
    return message


def test_wrong_number_of_classes_names_the_right_one(path):
    message = refusal(small(), small(num_classes=43).state_dict(), path)
    assert message.endswith("it has 43 classes, not 10; use it with data of 43 classes")


def test_wrong_number_of_channels_names_the_right_one(path):
    message = refusal(small(), small(in_channels=1).state_dict(), path)
    assert "it takes images of 1 channels, not 3" in message
    model = NormalizedModel(small(), [0.5] * 3, [1] * 3)
    stored = NormalizedModel(small(in_channels=1), [0.5], [1]).state_dict()
    assert "it takes images of 1 channels, not 3" in refusal(model, stored, path)


def test_other_width_names_both_shapes(path):
    message = refusal(small(), small(width=8).state_dict(), path)
    assert "'stages.0.conv1.weight' is 8 x 3 x 3 x 3 (float32), not 4 x 3 x 3 x 3" in message
    assert "check width" in message


def test_other_architecture_is_recognised(path):
    message = refusal(small(), WideResNet(16, 1, 3, 10).state_dict(), path)
    assert "its names are those of architecture 'wrn-16-1'" in message
    assert "lacks 'stages.0.conv1.weight', 'stages.0.bn1.weight'" in message


def test_a_single_other_name_points_to_its_nearest(weights, path):
    weights = dict(weights)
    weights["liner.weight"] = weights.pop("linear.weight")
    message = refusal(small(), weights, path)
    assert "lacks 'linear.weight' and it has 'liner.weight' too many" in message
    assert "perhaps 'liner.weight' is what is called 'linear.weight' here" in message


def test_weights_left_over_are_refused(weights, path):
    message = refusal(small(), {**weights, "extra.weight": torch.ones(1)}, path)
    assert "it has 'extra.weight' too many" in message


def test_normalised_weights_for_a_bare_network_say_where_they_belong(path):
    stored = NormalizedModel(small(), [0.1] * 3, [0.75] * 3).state_dict()
    assert "load it into a NormalizedModel" in refusal(small(), stored, path)


def test_quantised_numbers_are_no_weights(weights, path):
    weights = {**weights, "linear.weight": weights["linear.weight"].to(torch.int8)}
    assert "'linear.weight' is 10 x 8 (int8), not 10 x 8 (float32)" in refusal(
        small(), weights, path
    )


def test_networks_without_a_linear_layer_are_compared_too(path):
    first, second = (nn.Sequential(nn.Conv2d(3, width, 3)) for width in (4, 5))
    assert "'0.weight' is 5 x 3 x 3 x 3" in refusal(first, second.state_dict(), path)


# -- inferring -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "classes"),
    [
        ({"conv.weight": (8, 3, 3, 3), "fc.weight": (43, 8), "fc.bias": (43,)}, 43),
        ({"classifier.9.weight": (64, 8), "classifier.10.weight": (5, 64)}, 5),
        ({"classifier.10.weight": (5, 64), "classifier.9.weight": (64, 8)}, 5),
        # A transformer's file in alphabetical order, as safetensors keeps it.
        ({"head.weight": (7, 24), "mlp.0.weight": (96, 24), "mlp.2.weight": (24, 96)}, 7),
        ({"heads.head.weight": (4, 24), "mlp.weight": (24, 24)}, 4),
        ({"network.linear.weight": (3, 24), "z.weight": (24, 24)}, 3),
        ({"first.weight": (9, 4), "last.weight": (6, 9)}, 6),
        ({"stem.weight": (9, 3, 3, 3), "classifier.1.weight": (12, 9, 1, 1)}, 12),
    ],
)
def test_number_of_classes_is_read_off_the_last_layer(shapes, classes):
    assert infer_num_classes({name: torch.zeros(s) for name, s in shapes.items()}) == classes


def test_without_a_linear_layer_the_number_of_classes_is_unknown():
    with pytest.raises(InputError, match="no linear layer"):
        infer_num_classes({"conv.weight": torch.zeros(3, 3, 3, 3)})


def test_architecture_is_known_by_its_names(tmp_path):
    preact = PreActResNet(4, 1, 3, final_norm=False)
    assert infer_architecture(preact.state_dict()) == "preact-resnet-18"
    stored = NormalizedModel(WideResNet(40, 2, 1, 3), [0], [1])
    save_file(stored.state_dict(), tmp_path / "w.safetensors")
    assert infer_architecture(read_weights(tmp_path / "w.safetensors")) == "wrn-40-2"
    assert infer_architecture(small().state_dict()) is None
    assert infer_architecture({}) is None


def test_inferring_an_architecture_draws_no_random_number():
    before = torch.get_rng_state()
    infer_architecture({"a": torch.zeros(1)})
    assert torch.equal(torch.get_rng_state(), before)
