"""What each alternative to gradient ascent does to the isolated samples, or to the model."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from backdoorkit.api import InputError, batches
from backdoorkit.testing import tiny_context, tiny_images, tiny_network
from backdoorkit_abl import ABLConfig
from backdoorkit_abl._isolation import Isolation, lowest, sample_losses
from backdoorkit_abl._variants import (
    LastLayers,
    PixelNoise,
    Relabelling,
    last_modules,
    load_all_but_head,
    pseudo_labels,
    read_weights,
    soft_cross_entropy,
    with_grad_noise,
    with_labels,
)


def isolation(count=8, size=40):
    model, data = tiny_network(), tiny_images(size)
    losses = sample_losses(model, data, tiny_context("abl"))
    return Isolation(model=model, data=data, losses=losses, positions=lowest(losses, count))


def generator():
    return torch.Generator().manual_seed(0)


# -- images ----------------------------------------------------------------------------------------


def test_pixel_noise_changes_isolated_images_alone_and_anew_each_time():
    found = isolation()
    hooks = PixelNoise(found.mask, 0.1, generator())
    batch = next(batches(found.data, 40))
    first, second = (hooks.transform_batch(batch, epoch).images for epoch in (0, 1))
    assert torch.equal(first[~found.mask], batch.images[~found.mask])
    assert not torch.equal(first[found.mask], second[found.mask])
    assert first.min() >= 0
    assert first.max() <= 1
    inner = (batch.images > 0.4) & (batch.images < 0.6) & found.mask[:, None, None, None]
    assert (first - batch.images)[inner].std().item() == pytest.approx(0.1, abs=0.01)


def test_grad_noise_raises_the_loss_of_the_isolated_by_one_signed_step():
    found = isolation()
    changed = with_grad_noise(found, 8 / 255, tiny_context("abl"))
    difference = changed.images.int() - found.data.images.int()
    assert not difference[~found.mask].any()
    assert difference.abs().max() == 8
    after = sample_losses(found.model, changed, tiny_context("abl"))
    assert (after[found.mask] > found.losses[found.mask]).all()
    assert torch.equal(changed.labels, found.data.labels)
    assert all(parameter.grad is None for parameter in found.model.parameters())


# -- labels ----------------------------------------------------------------------------------------


def relabelled(found, how):
    hooks = Relabelling(found, how, generator())
    batch = next(batches(found.data, len(found.data)))
    return [hooks.transform_batch(batch, epoch).labels for epoch in (0, 1)]


def test_random_labels_are_uniform_drawn_per_epoch_and_for_the_isolated_alone():
    found = isolation(count=400, size=440)
    first, second = relabelled(found, "random")
    assert torch.equal(first[~found.mask], found.data.labels[~found.mask])
    assert not torch.equal(first, second)
    shares = torch.bincount(first[found.mask], minlength=4) / 400
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.08)


def test_a_permutation_keeps_the_isolated_labels_as_a_whole():
    found = isolation(count=20)
    first, second = relabelled(found, "permuted")
    own = found.isolated.labels
    assert not torch.equal(first[found.mask], own)
    assert not torch.equal(first, second)
    assert torch.equal(first[found.mask].sort().values, own.sort().values)


def test_the_training_set_itself_is_not_relabelled():
    found = isolation()
    before = found.data.labels.clone()
    relabelled(found, "random")
    assert torch.equal(found.data.labels, before)


def test_no_smoothing_is_the_label_and_full_smoothing_is_uniform():
    logits = torch.randn(6, 5, generator=generator())
    labels = torch.arange(6) % 5
    plain = functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(soft_cross_entropy(logits, labels, torch.zeros(6)), plain)
    uniform = functional.cross_entropy(logits, torch.full((6, 5), 0.2), reduction="none")
    torch.testing.assert_close(soft_cross_entropy(logits, labels, torch.ones(6)), uniform)


def test_smoothing_between_is_torch_s_own():
    logits = torch.randn(6, 5, generator=generator())
    labels = torch.arange(6) % 5
    wanted = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)
    found = soft_cross_entropy(logits, labels, torch.full((6,), 0.1))
    torch.testing.assert_close(found, wanted)


def test_the_uniform_target_s_least_loss_is_that_of_guessing():
    labels, smoothing = torch.tensor([3]), torch.ones(1)
    least = soft_cross_entropy(torch.zeros(1, 10), labels, smoothing).item()
    assert least == pytest.approx(math.log(10))
    tilted = torch.zeros(1, 10)
    tilted[0, 0] = 0.1
    assert soft_cross_entropy(tilted, labels, smoothing).item() > least


def test_pseudo_labels_are_the_best_class_that_is_not_the_label():
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [-5.0, -6.0, -7.0]])
    assert pseudo_labels(logits, torch.tensor([0, 1, 0])).tolist() == [1, 0, 1]


def test_new_labels_go_to_the_isolated_samples():
    found = isolation()
    labels = (found.isolated.labels + 1) % 4
    changed = with_labels(found, labels)
    assert torch.equal(changed.labels[found.positions], labels)
    assert torch.equal(changed.labels[~found.mask], found.data.labels[~found.mask])
    assert torch.equal(changed.images, found.data.images)


# -- model -----------------------------------------------------------------------------------------


def test_the_last_layers_are_counted_from_the_output():
    model = tiny_network()
    structure = tiny_context("abl").structure(model)
    assert last_modules(model, structure, 1) == ["network.head"]
    assert last_modules(model, structure, 3) == ["network.conv2", "network.bn2", "network.head"]
    assert len(last_modules(model, structure, 99)) == 5


def test_only_the_last_layers_move_not_even_statistics_do_elsewhere():
    model = tiny_network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = ABLConfig(epochs=1, batch_size=16, precision="float32")
    with LastLayers(model, ["network.bn2", "network.head"]) as hooks:
        tiny_context("abl").fit(model, tiny_images(32), options, hooks=hooks)
    moved = {name for name, value in model.state_dict().items() if not before[name].equal(value)}
    assert moved == {
        "network.bn2.weight",
        "network.bn2.bias",
        "network.bn2.running_mean",
        "network.bn2.running_var",
        "network.bn2.num_batches_tracked",
        "network.head.weight",
        "network.head.bias",
    }
    assert all(parameter.requires_grad for parameter in model.parameters())


def weights_file(path, **changed):
    weights = dict(tiny_network(5).network.state_dict())
    weights.update({"head.weight": torch.randn(1000, 32), "head.bias": torch.randn(1000)})
    weights.update(changed)
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
    return path


def test_foreign_weights_are_taken_but_for_the_head_and_the_normalisation(tmp_path):
    path = weights_file(tmp_path / "imagenet.safetensors")
    model, other = tiny_network(), tiny_network(5)
    head = model.network.head.weight.clone()
    load_all_but_head(model, read_weights(path), "network.head", path)
    assert torch.equal(model.network.conv1.weight, other.network.conv1.weight)
    assert torch.equal(model.network.head.weight, head)
    assert torch.equal(model.mean, other.mean)


def test_weights_of_another_architecture_are_refused(tmp_path):
    path = weights_file(
        tmp_path / "other.safetensors", **{"conv1.weight": torch.zeros(64, 3, 7, 7)}
    )
    with pytest.raises(InputError, match=r"missing or of another shape, first 'network\.conv1\."):
        load_all_but_head(tiny_network(), read_weights(path), "network.head", path)


def test_a_file_that_is_missing_pickled_or_damaged_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_weights(tmp_path / "nowhere.safetensors")
    for name, message in (("a.pth", "is no .safetensors file"), ("a.safetensors", "not a sound")):
        (tmp_path / name).write_bytes(b"nothing of that kind")
        with pytest.raises(InputError, match=message):
            read_weights(tmp_path / name)
