"""The mathematics of ANP: the worst perturbation, and steps on the masks."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from backdoorkit.api import MaskedModel, find_structure, masked, masked_layers
from backdoorkit.testing import tiny_context, tiny_images, tiny_network
from backdoorkit_anp import ANPConfig
from backdoorkit_anp._masks import draw_batches, learn_masks, masked_loss, worst_perturbation

COEFFICIENTS = torch.tensor([2.0, -3.0, 0.0, 0.5])


def layers_of(model):
    return masked_layers(find_structure(model, (3, 16, 16)), "auto", "anp")


def linear(perturbation):
    """f = Σ (m_k + δ_k) a_k with m = 1."""
    return ((1 + perturbation) * COEFFICIENTS).sum()


@pytest.mark.parametrize("steps", [1, 4])
def test_on_a_linear_loss_the_worst_perturbation_is_epsilon_along_the_signs(steps):
    found = worst_perturbation(linear, torch.zeros(4), epsilon=0.4, steps=steps, project=True)
    torch.testing.assert_close(found, 0.4 * COEFFICIENTS.sign())


def test_only_projection_keeps_the_random_start_within_epsilon():
    start = torch.tensor([0.3, 0.3, 0.3, -0.4])
    kept = worst_perturbation(linear, start, epsilon=0.4, steps=1, project=True)
    torch.testing.assert_close(kept, torch.tensor([0.4, -0.1, 0.3, 0.0]))
    free = worst_perturbation(linear, start, epsilon=0.4, steps=1, project=False)
    torch.testing.assert_close(free, torch.tensor([0.7, -0.1, 0.3, 0.0]))
    assert not free.requires_grad


def test_every_step_follows_the_gradient_where_it_is():
    # A parabola with its foot in the first step's way: the second step turns back.
    found = worst_perturbation(
        lambda p: -(p - 0.1).square().sum(), torch.zeros(1), epsilon=0.6, steps=2, project=True
    )
    torch.testing.assert_close(found, torch.zeros(1))


def test_the_perturbed_loss_scales_weights_by_mask_plus_delta_and_shifts_by_one_plus_xi():
    model = tiny_network().eval()
    with torch.no_grad():
        model.network.bn1.bias.fill_(0.3)
    masked_model = MaskedModel(model, layers_of(model))
    data = tiny_images(8)
    pixels = data.images.float() / 255
    masks = torch.full((56,), 0.5)
    delta, xi = torch.full((56,), 0.2), torch.full((56,), -0.3)
    context = tiny_context("anp")
    found = masked_loss(masked_model, pixels, data.labels, context, masks, torch.stack([delta, xi]))
    with torch.no_grad():
        for norm in (model.network.bn1, model.network.bn2):
            norm.weight.mul_(0.7)
            norm.bias.mul_(0.7)
    torch.testing.assert_close(found, functional.cross_entropy(model(pixels), data.labels))


def test_without_perturbation_masks_descend_the_plain_loss():
    config = ANPConfig(
        iterations=3, batch_size=8, epsilon=0.0, alpha=1.0, learning_rate=5.0, momentum=0.5
    )
    model, data, context = tiny_network(), tiny_images(32), tiny_context("anp")
    with masked(model, layers_of(model), batch_statistics=True) as masked_model:
        learnt = learn_masks(masked_model, data, config, context)

        masks, velocity = torch.ones(56), torch.zeros(56)
        for pixels, labels in draw_batches(data, config, context):
            masks.requires_grad_()
            loss = functional.cross_entropy(masked_model(pixels, masks), labels)
            (gradient,) = torch.autograd.grad(loss, masks)
            velocity = 0.5 * velocity + gradient
            masks = (masks.detach() - 5.0 * velocity).clamp(0, 1)
    torch.testing.assert_close(learnt, masks)
    assert learnt.min() < 0.999


def test_without_strength_alpha_does_not_matter():
    # Both terms are then the same loss, and their weights add up to one.
    model, data = tiny_network(), tiny_images(32)
    found = []
    with masked(model, layers_of(model), batch_statistics=True) as masked_model:
        for alpha in (0.2, 1.0):
            config = ANPConfig(iterations=3, batch_size=8, epsilon=0.0, alpha=alpha)
            found.append(learn_masks(masked_model, data, config, tiny_context("anp")))
    torch.testing.assert_close(*found)


def test_masks_stay_between_zero_and_one():
    config = ANPConfig(iterations=5, batch_size=8, learning_rate=50.0)
    model, context = tiny_network(), tiny_context("anp")
    with masked(model, layers_of(model), batch_statistics=True) as masked_model:
        masks = learn_masks(masked_model, tiny_images(32), config, context)
    assert float(masks.min()) == 0
    assert float(masks.max()) <= 1


def test_the_cost_is_counted():
    context = tiny_context("anp")
    config, model = ANPConfig(iterations=4, batch_size=8, steps=2), tiny_network()
    with masked(model, layers_of(model), batch_statistics=True) as masked_model:
        learn_masks(masked_model, tiny_images(16), config, context)
    assert context.gradient_steps == 4
    assert context.samples_seen == 4 * 8 * (2 + 2)


def test_batches_are_of_one_size_whatever_the_reserve():
    config = ANPConfig(iterations=3, batch_size=16)
    data = tiny_images(5)
    drawn = list(draw_batches(data, config, tiny_context("anp")))
    assert [(len(pixels), len(labels)) for pixels, labels in drawn] == [(16, 16)] * 3
    for pixels, labels in drawn:
        for image, label in zip(pixels, labels, strict=True):
            same = (data.images.float() / 255 == image).flatten(1).all(dim=1)
            assert data.labels[same].tolist() == [int(label)]


def test_augmentation_moves_images():
    config = ANPConfig(iterations=1, batch_size=16, crop_padding=2)
    data, context = tiny_images(5), tiny_context("anp")
    (pixels, _), *_ = draw_batches(data, config, context)
    (plain, _), *_ = draw_batches(data, ANPConfig(iterations=1, batch_size=16), context)
    assert pixels.shape == plain.shape
    assert not torch.equal(pixels, plain)
