"""Batch-norm statistics, estimated again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backdoorkit.testing import tiny_images
from backdoorkit_mcr._statistics import estimate_statistics

CPU = torch.device("cpu")


def images(count):
    return tiny_images(count, seed=5)


def pixels(count):
    return images(count).images.float() / 255


@pytest.mark.parametrize("batch_size", [5, 8, 100])
def test_the_mean_is_that_of_all_images_however_they_are_divided(batch_size):
    norm = nn.BatchNorm2d(3)
    estimate_statistics(norm, images(20), CPU, batch_size=batch_size)
    torch.testing.assert_close(norm.running_mean, pixels(20).mean(dim=(0, 2, 3)))


def test_the_variance_is_the_batches_mean_weighted_by_their_size():
    norm = nn.BatchNorm2d(3)
    estimate_statistics(norm, images(20), CPU, batch_size=15)
    parts = pixels(20).split(15)
    first, second = (part.transpose(0, 1).flatten(1).var(dim=1) for part in parts)
    torch.testing.assert_close(norm.running_var, 0.75 * first + 0.25 * second)


def test_nothing_is_left_of_the_statistics_before():
    norm, other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    norm.running_mean.fill_(1e6)
    norm.running_var.fill_(1e6)
    for each in (norm, other):
        estimate_statistics(each, images(20), CPU)
    assert torch.equal(norm.running_mean, other.running_mean)
    assert torch.equal(norm.running_var, other.running_var)


def test_in_one_batch_eval_mode_then_normalises_as_train_mode_does():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    model.append(nn.BatchNorm2d(4))
    expected = model.train()(pixels(20))
    estimate_statistics(model, images(20), CPU)
    torch.testing.assert_close(model.eval()(pixels(20)), expected, atol=2e-3, rtol=0)


def test_modes_and_momenta_stay_and_dropout_takes_no_part():
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(3, momentum=0.3), nn.BatchNorm2d(3))
    model.eval()
    model[0].train()
    estimate_statistics(model, images(20), CPU)
    assert [module.training for module in model] == [True, False, False]
    assert [module.momentum for module in list(model)[1:]] == [0.3, 0.1]
    torch.testing.assert_close(model[1].running_mean, pixels(20).mean(dim=(0, 2, 3)))


def test_a_model_without_statistics_is_not_even_run():
    class Untouchable(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3, track_running_stats=False)

        def forward(self, images):
            raise AssertionError

    estimate_statistics(Untouchable(), images(4), CPU)
