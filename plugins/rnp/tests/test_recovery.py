"""Recovering learns masks, and nothing but masks."""

from __future__ import annotations

import torch
from torch.nn import functional

from backdoorkit.api import find_structure, masked, masked_layers
from backdoorkit.testing import tiny_context, tiny_images, tiny_network, tiny_victim
from backdoorkit_rnp import RNPConfig
from backdoorkit_rnp._recovery import recover
from backdoorkit_rnp._unlearning import unlearn_clean

SHAPE = (3, 16, 16)


def options(**values):
    return RNPConfig(**{"batch_size": 32, "precision": "float32", **values})


def layers_of(model):
    return masked_layers(find_structure(model, SHAPE), "auto", "rnp")


def test_only_masks_change_and_accuracy_rises():
    victim, context = tiny_victim(), tiny_context("rnp")
    model = unlearn_clean(victim.model, victim.reserve, options(), 4, context).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps = context.gradient_steps
    with masked(model, layers_of(model), batch_statistics=True) as masked_model:
        masks, accuracies = recover(masked_model, victim.reserve, options(), context)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert len(accuracies) == 20
    assert accuracies[-1] > accuracies[0] + 0.2
    assert float(masks.min()) >= 0
    assert float(masks.max()) <= 1
    assert masks.min() < 0.5
    assert context.gradient_steps - steps == 20 * 4


def test_one_step_is_plain_descent_of_alpha_times_cross_entropy():
    # One batch, so the order does not matter: m = 1 - rate α ∂L/∂m, kept in [0, 1].
    model, data, context = tiny_network(), tiny_images(8), tiny_context("rnp")
    config = options(recovery_epochs=1, recovery_rate=0.5, alpha=0.3)
    with masked(model, layers_of(model), batch_statistics=True) as masked_model:
        found, _ = recover(masked_model, data, config, context)
        masks = torch.ones(56, requires_grad=True)
        loss = functional.cross_entropy(masked_model(data.images / 255, masks), data.labels)
        (gradient,) = torch.autograd.grad(loss, masks)
    torch.testing.assert_close(found, (1 - 0.5 * 0.3 * gradient).clamp(0, 1))
    assert found.min() < 1


def test_without_epochs_nothing_is_masked():
    model, context = tiny_network(), tiny_context("rnp")
    with masked(model, layers_of(model), batch_statistics=True) as masked_model:
        config = options(recovery_epochs=0)
        masks, accuracies = recover(masked_model, tiny_images(8), config, context)
    assert bool((masks == 1).all())
    assert accuracies == []


def test_a_last_batch_of_one_image_is_no_trouble():
    model, context = tiny_network(), tiny_context("rnp")
    with masked(model, layers_of(model), batch_statistics=True) as masked_model:
        config = options(recovery_epochs=1, crop_padding=2)
        masks, _ = recover(masked_model, tiny_images(33), config, context)
    assert bool(masks.isfinite().all())
    assert context.gradient_steps == 1
