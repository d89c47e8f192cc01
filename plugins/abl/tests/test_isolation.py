"""Stage 1: its losses, and who is isolated."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from backdoorkit.api import ImageSet, InputError
from backdoorkit.testing import tiny_context, tiny_images, tiny_network
from backdoorkit_abl import ABLConfig
from backdoorkit_abl._isolation import (
    flooding,
    isolate,
    isolated_count,
    local_gradient_ascent,
    lowest,
    sample_losses,
)


def gradient(loss, values):
    losses = torch.tensor(values, requires_grad=True)
    (result,) = torch.autograd.grad(loss(losses), losses)
    return result


# -- losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[0.1, 0.3], [0.2, 3.0], [0.5, 0.5], [0.0, 0.0]])
def test_flooding_and_local_gradient_ascent_have_the_same_gradient_bit_by_bit(values):
    by_lga = gradient(lambda losses: local_gradient_ascent(losses, 0.5), values)
    by_flooding = gradient(lambda losses: flooding(losses, 0.5), values)
    assert torch.equal(by_lga, by_flooding)


def test_below_gamma_the_loss_ascends_and_above_it_descends():
    def sign(values):
        return gradient(lambda losses: local_gradient_ascent(losses, 0.5), values).tolist()

    assert sign([0.1, 0.3]) == [-0.5, -0.5]
    assert sign([0.1, 1.3]) == [0.5, 0.5]


def test_the_values_differ_although_the_gradients_do_not():
    losses = torch.tensor([0.1, 0.3])
    assert local_gradient_ascent(losses, 0.5).item() == pytest.approx(-0.2)
    assert flooding(losses, 0.5).item() == pytest.approx(0.8)  # 0.3 below the level, so 0.3 above


def test_above_the_level_both_are_the_mean_loss():
    losses = torch.tensor([1.0, 2.0])
    assert local_gradient_ascent(losses, 0.5).item() == flooding(losses, 0.5).item() == 1.5


def test_per_sample_each_has_its_own_sign():
    found = gradient(lambda losses: local_gradient_ascent(losses, 0.5, "sample"), [0.1, 1.3])
    assert found.tolist() == [-0.5, 0.5]


def test_both_losses_train_the_same_model():
    def state(isolation_loss):
        config = ABLConfig(
            isolation_loss=isolation_loss,
            isolation_rate=0.1,
            gamma=1.2,
            turning_epoch=2,
            batch_size=16,
            precision="float32",
        )
        return isolate_with(tiny_images(64), config).model.state_dict()

    by_lga, by_flooding, plain = state("lga"), state("flooding"), state("cross-entropy")
    assert all(torch.equal(by_lga[name], by_flooding[name]) for name in by_lga)
    assert not all(torch.equal(by_lga[name], plain[name]) for name in by_lga)


# -- who is isolated -------------------------------------------------------------------------------


def test_the_lowest_losses_in_the_order_of_the_data():
    losses = torch.tensor([0.9, 0.1, 0.5, 0.05, 0.7])
    assert lowest(losses, 2).tolist() == [1, 3]
    assert lowest(losses, 3).tolist() == [1, 2, 3]


def test_of_equal_losses_the_first_are_isolated():
    assert lowest(torch.zeros(1000), 10).tolist() == list(range(10))
    assert lowest(torch.tensor([0.3, 0.2, 0.3, 0.2, 0.3]), 3).tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("size", "rate", "count"),
    [(50_000, 0.01, 500), (100, 0.29, 29), (199, 0.01, 1), (1397, 0.01, 13), (3, 0.5, 1)],
)
def test_the_share_is_rounded_down(size, rate, count):
    assert isolated_count(size, rate) == count


def test_less_than_one_sample_is_refused():
    with pytest.raises(InputError, match=r"0\.01 of 99 training images is less than one"):
        isolated_count(99, 0.01)


def isolate_with(data, config, seed=0):
    return isolate(tiny_network(seed), data, config, tiny_context("abl", seed=seed))


def test_isolated_and_rest_are_the_training_set_with_its_ids():
    whole = tiny_images(50)
    data = ImageSet.from_tensors(
        whole.images, whole.labels, num_classes=4, ids=torch.arange(50) * 3 + 7
    )
    config = ABLConfig(turning_epoch=1, isolation_rate=0.2, batch_size=16, precision="float32")
    isolation = isolate_with(data, config)
    isolated, rest = isolation.isolated, isolation.rest
    assert (len(isolated), len(rest)) == (10, 40)
    assert isolated.ids.tolist() == sorted(isolated.ids.tolist())
    assert rest.ids.tolist() == sorted(rest.ids.tolist())
    assert sorted([*isolated.ids.tolist(), *rest.ids.tolist()]) == data.ids.tolist()
    assert isolation.losses[isolation.mask].max() <= isolation.losses[~isolation.mask].min()


def test_stage_one_sees_images_as_they_are_whatever_stage_two_does():
    data = tiny_images(64)
    common = {"turning_epoch": 1, "isolation_rate": 0.1, "precision": "float32"}
    plain = isolate_with(data, ABLConfig(**common))
    augmented = isolate_with(
        data, ABLConfig(**common, crop_padding=4, horizontal_flip=True, label_smoothing=0.2)
    )
    assert torch.equal(plain.losses, augmented.losses)


class Fixed(nn.Module):
    """Logit of class 0 is the first pixel, times 60; all others are 0."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(60.0))

    def forward(self, images):
        first = images[:, 0, 0, 0] * self.scale
        return torch.stack([first, torch.zeros_like(first)], dim=1)


def test_well_learned_samples_are_told_apart():
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    images[0], images[1] = 200, 255
    data = ImageSet.from_tensors(images, torch.zeros(3, dtype=torch.int64), num_classes=2)
    losses = sample_losses(Fixed(), data, tiny_context("abl"))
    expected = [math.exp(-60 * 200 / 255), math.exp(-60), math.log(2)]
    torch.testing.assert_close(
        losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0
    )


def test_losses_are_the_cross_entropies():
    model, data = tiny_network(), tiny_images(20)
    logits = tiny_context("abl").predict(model, data).double()
    expected = functional.cross_entropy(logits, data.labels, reduction="none")
    torch.testing.assert_close(sample_losses(model, data, tiny_context("abl")), expected)
