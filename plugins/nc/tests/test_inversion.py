"""Trigger inversion: its building blocks exactly, and its outcome on a backdoor known by hand."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import nn

from backdoorkit.api import Context, ImageSet, InputError
from backdoorkit.testing import tiny_context, tiny_victim
from backdoorkit_nc import InversionOptions
from backdoorkit_nc._inversion import (
    Adam,
    Triggers,
    images_at_once,
    invert,
    stamp,
    stamp_all,
    stamp_gradient,
    success_rates,
    to_box,
    to_free,
)


def reverse(planted, model, classes=None, **options):
    options = InversionOptions(**{**planted.quick, **options})
    classes = range(planted.classes) if classes is None else classes
    return invert(model.eval(), planted.images(160), classes, options, planted.context())


@pytest.fixture(scope="module")
def found(planted):
    return reverse(planted, planted.model())


# -- building blocks -------------------------------------------------------------------------------


def test_no_mask_keeps_the_image_and_a_full_mask_is_the_pattern():
    generator = torch.Generator().manual_seed(0)
    images, pattern = torch.rand(2, 5, 3, 4, 4, generator=generator).unbind()
    assert torch.equal(stamp(images, torch.zeros(1, 4, 4), pattern), images)
    assert torch.equal(stamp(images, torch.ones(1, 4, 4), pattern), pattern)
    mask = torch.rand(1, 4, 4, generator=generator)
    torch.testing.assert_close(
        stamp(images, mask, pattern), (1 - mask) * images + mask * pattern, rtol=0, atol=1e-7
    )


def test_the_gradient_of_the_triggers_is_the_derivative_of_the_stamped_images():
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    images, triggers = random(5, 3, 4, 6), random(2, 4, 4, 6).requires_grad_()
    masks, patterns = triggers[:, :1], triggers[:, 1:]
    stamped = stamp_all(images, masks, patterns)
    assert torch.equal(stamped[5 + 3], stamp(images[3], masks[1], patterns[1]))  # class 1, image 3
    slope = random(*stamped.shape)
    (expected,) = torch.autograd.grad((stamped * slope).sum(), triggers)
    torch.testing.assert_close(stamp_gradient(slope, images, masks, patterns), expected)


def test_the_box_holds_whatever_the_optimiser_does():
    free = torch.tensor([-1e30, -20.0, -1.0, 0.0, 1.0, 20.0, 1e30])
    boxed = to_box(free)
    assert 0 <= float(boxed.min()) <= float(boxed.max()) <= 1
    assert float(boxed[3]) == 0.5
    assert float(to_box(torch.ones(()))) == pytest.approx(0.8808, abs=1e-4)


def test_free_values_are_finite_up_to_the_edge_of_the_box():
    values = torch.tensor([0.0, 1e-3, 0.3, 1 - 1e-3, 1.0])
    assert to_free(values).isfinite().all()
    torch.testing.assert_close(to_box(to_free(values)), values, rtol=0, atol=2e-6)


def test_adam_is_adam():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 4, generator=generator)
    mine, parameter = Adam(start.clone(), 0.1), start.clone().requires_grad_()
    reference = torch.optim.Adam([parameter], lr=0.1, betas=(0.5, 0.9))
    for _ in range(5):
        gradient = torch.randn(3, 4, generator=generator)
        mine.step(gradient)
        parameter.grad = gradient
        reference.step()
    torch.testing.assert_close(mine.values, parameter.detach())


def test_success_counts_all_images_or_those_of_other_classes(planted):
    model, data = planted.model().eval(), planted.images(160)
    nothing = torch.zeros(1, *planted.shape)
    for others_only, expected in ((False, 1 / 8), (True, 0.0)):
        rate = success_rates(
            model, data, nothing, nothing, torch.tensor([3]), 64, others_only=others_only
        )
        assert float(rate) == pytest.approx(expected)


def test_fewer_large_images_go_through_together():
    cpu = torch.device("cpu")
    assert images_at_once((3, 32, 32), cpu) == 4 * images_at_once((3, 64, 64), cpu)
    assert images_at_once((3, 4096, 4096), cpu) == 1


# -- outcome ---------------------------------------------------------------------------------------


def test_the_planted_trigger_is_found_and_half_as_large_as_any_other(planted, found):
    assert planted.attack_success(planted.model()) == 1
    norms = found.norms.sort().values
    assert found.norms.argmin() == 0
    assert float(norms[0]) == pytest.approx(2.0, abs=0.3)
    assert float(norms[1]) >= 3.3
    assert float(norms[0] / norms[1]) <= 0.6
    outside = found.masks[0].clone()
    outside[0, -2:, -2:] = 0
    assert float(outside.sum()) < 1e-4
    assert found.converged.all()
    assert float(found.success.min()) > 0.9


def test_without_the_trigger_all_classes_are_alike(planted, found):
    clean = reverse(planted, planted.model(vote=0.0))
    assert float(clean.norms.min() / clean.norms.max()) > 0.8
    # The other classes do not see the trigger's unit, nor class 0.
    torch.testing.assert_close(clean.norms[1:], found.norms[1:], rtol=0.05, atol=0)


def test_masks_and_patterns_stay_in_the_box(found):
    for values in (found.masks, found.patterns):
        assert 0 <= float(values.min()) <= float(values.max()) <= 1


@pytest.mark.parametrize("together", [1, 3])
def test_a_class_gets_the_same_bits_alone_and_with_others(planted, found, together):
    # Classes finish after different numbers of steps, so rows drop out on the way.
    assert len(found.steps.unique()) > 4
    classes = [2, 0, 5]
    again = reverse(planted, planted.model(), classes, classes_at_once=together)
    assert torch.equal(again.masks, found.masks[classes])
    assert torch.equal(again.patterns, found.patterns[classes])
    assert torch.equal(again.steps, found.steps[classes])


def test_convolutions_with_batch_norm_give_the_same_bits_too():
    victim = tiny_victim()
    options = InversionOptions(inversion_steps=3, inversion_batches=2)

    def masks(classes, together):
        chosen = attrs.evolve(options, classes_at_once=together)
        return invert(victim.model, victim.reserve, classes, chosen, tiny_context("nc")).masks

    whole = masks(range(4), 4)
    assert torch.equal(masks([3], 1)[0], whole[3])
    assert torch.equal(masks(range(4), 2), whole)


def test_a_trained_backdoor_needs_the_smallest_trigger():
    victim = tiny_victim()
    options = InversionOptions(inversion_steps=25, inversion_batches=2)
    found = invert(victim.model, victim.reserve, range(4), options, tiny_context("nc"))
    norms = found.norms
    assert norms.argmin() == victim.target
    assert float(norms[victim.target]) < 0.6 * float(norms.sort().values[1])


def test_what_never_works_is_the_latest_and_said_so(planted):
    never = reverse(planted, planted.model(), [0], inversion_steps=3, success_threshold=1.0)
    assert not never.converged.any()
    assert never.steps.tolist() == [3]


# -- surroundings ----------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was(planted):
    model = planted.model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = InversionOptions(inversion_steps=1, inversion_batches=1)
    invert(model, planted.images(32), [0], options, planted.context())
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_cost_is_counted(planted):
    context = planted.context()
    options = InversionOptions(inversion_steps=2, inversion_batches=0, inversion_batch_size=64)
    invert(planted.model().eval(), planted.images(160), [0, 1, 2], options, context)
    assert context.gradient_steps == 4  # two full batches a pass
    assert context.samples_seen == 4 * 3 * 64


def test_a_reserve_smaller_than_a_batch_is_one_batch(planted):
    context = planted.context()
    options = InversionOptions(inversion_steps=1, inversion_batches=2)
    invert(planted.model().eval(), planted.images(5), [0], options, context)
    assert context.samples_seen == 10


def test_the_constant_start_is_the_same_for_every_class(planted):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8)).requires_grad_(False)
    model[1].weight.zero_()  # no gradient but that of the norm, which is switched off at first
    start = reverse(planted, model, start="constant", inversion_steps=1)
    torch.testing.assert_close(start.masks, torch.full_like(start.masks, 0.880797))
    assert len(reverse(planted, model, inversion_steps=1).norms.unique()) == 8


def test_images_need_not_be_square():
    images = torch.randint(0, 256, (12, 2, 5, 7), dtype=torch.uint8)
    data = ImageSet.from_tensors(images, torch.arange(12) % 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(70, 3)).eval()
    context = Context(method="nc", seed=0, device=torch.device("cpu"), precision="float32")
    options = InversionOptions(inversion_steps=2, inversion_batches=1)
    found = invert(model, data, range(3), options, context)
    assert found.masks.shape == (3, 1, 5, 7)
    assert found.patterns.shape == (3, 2, 5, 7)


def test_an_empty_reserve_is_refused(planted):
    empty = planted.images(8).subset(torch.arange(0))
    with pytest.raises(InputError, match="reserve is empty"):
        invert(planted.model(), empty, [0], InversionOptions(), planted.context())


def test_norms_are_sums_over_the_mask():
    masks = torch.full((2, 1, 3, 4), 0.25)
    ones = torch.ones(2)
    triggers = Triggers(
        masks=masks, patterns=masks, success=ones, converged=ones > 0, steps=ones.long()
    )
    assert triggers.norms.tolist() == [3.0, 3.0]
