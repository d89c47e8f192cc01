"""i-BAU as a whole, and its training against a perturbation."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional

from backdoorkit import Need
from backdoorkit.api import (
    Batch,
    Context,
    ContractError,
    DefenseTask,
    ImageSet,
    InputError,
    StructureError,
)
from backdoorkit.hooks.options import structure
from backdoorkit.testing import tiny_context, tiny_images, tiny_network, tiny_victim
from backdoorkit_ibau import IBAUConfig, backdoorkit_defenses
from backdoorkit_ibau._defense import IBAU
from backdoorkit_ibau._perturbation import find_perturbation
from backdoorkit_ibau._unlearning import make_optimizer, patch_mask, unlearn

SHAPE = (3, 16, 16)
FEW = {"rounds": 1, "ascent_steps": 2, "batch_size": 8}


def defend(model, clean=None, *, seed=0, **options):
    task = DefenseTask(
        method="ibau",
        num_classes=4,
        image_shape=SHAPE,
        resources={
            Need.WEIGHTS: copy.deepcopy(model),
            Need.CLEAN_SAMPLES: tiny_images(16, seed=3) if clean is None else clean,
        },
    )
    return IBAU(IBAUConfig(**{**FEW, **options})).run(task, tiny_context("ibau", seed=seed))


def one_batch(count=8):
    data = tiny_images(count, seed=3)
    return Batch(data.images.float() / 255, data.labels, torch.arange(count))


def train(model, perturbation, *, batch=None, passes=1, context=None, **options):
    config = IBAUConfig(**{"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.1, **options})
    batch = one_batch() if batch is None else batch
    optimizer = make_optimizer(model, config)
    generator = torch.Generator().manual_seed(0)
    context = tiny_context("ibau") if context is None else context
    return unlearn(
        model, optimizer, [batch] * passes, batch, perturbation, generator, config, context
    )


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@functools.cache
def noise():
    return 0.2 * torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1))


# -- training against a perturbation ---------------------------------------------------------------


@pytest.mark.parametrize(("count", "patched"), [(1, 1), (7, 1), (49, 1), (100, 1), (256, 3)])
def test_at_least_one_image_of_every_batch_is_patched(count, patched):
    mask = patch_mask(count, IBAUConfig().patched_share, torch.Generator().manual_seed(0))
    assert mask.shape == (count, 1, 1, 1)
    assert mask.sum() == patched
    assert set(mask.flatten().tolist()) <= {0.0, 1.0}


def test_all_images_are_patched_where_asked():
    assert patch_mask(7, 1.0, torch.Generator()).sum() == 7


def test_the_patched_images_follow_the_generator():
    generator = torch.Generator().manual_seed(0)
    drawn = [patch_mask(64, 0.25, generator) for _ in range(2)]
    assert not torch.equal(*drawn)
    assert torch.equal(drawn[0], patch_mask(64, 0.25, generator.manual_seed(0)))


def test_without_the_implicit_term_a_step_is_plain_training_on_patched_images():
    model, batch = tiny_network().eval(), one_batch()
    twin = copy.deepcopy(model)
    loss = functional.cross_entropy(twin(batch.images + noise()), batch.labels)
    gradients = torch.autograd.grad(loss, list(twin.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(twin.parameters(), gradients, strict=True):
            parameter.sub_(0.1 * gradient)
    reported = train(model, noise(), implicit=False, patched_share=1.0)
    torch.testing.assert_close(weights(model), weights(twin))
    assert reported == pytest.approx(float(loss.detach()))


def test_the_implicit_term_changes_the_step_and_vanishes_with_its_rate():
    models = [tiny_network().eval() for _ in range(3)]
    train(models[0], noise(), implicit=False, patched_share=1.0)
    train(models[1], noise(), implicit=True, patched_share=1.0)
    train(models[2], noise(), implicit=True, patched_share=1.0, fixed_point_rate=0.0)
    plain, implicit, without_rate = map(weights, models)
    assert not torch.allclose(plain, implicit, atol=1e-6)
    torch.testing.assert_close(plain, without_rate)


@pytest.mark.parametrize("implicit", [True, False])
def test_training_lowers_the_loss_under_the_perturbation(implicit):
    model, perturbation = copy.deepcopy(tiny_victim().model), 5 * noise()
    options = {"implicit": implicit, "patched_share": 1.0, "optimizer": "adam"}
    options |= {"learning_rate": 1e-3, "momentum": 0.9}
    first = train(copy.deepcopy(model), perturbation, **options)
    assert train(model, perturbation, passes=12, **options) < first
    assert train(model, perturbation, **options) < 0.5 * first


def test_gradients_are_cleared_and_the_perturbation_is_left_alone():
    model, perturbation = tiny_network().eval(), noise().clone()
    train(model, perturbation)
    assert torch.equal(perturbation, noise())
    assert not perturbation.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_parameters_stay():
    model = tiny_network().eval()
    model.network.conv1.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    train(model, noise())
    assert torch.equal(model.network.conv1.weight, before["network.conv1.weight"])
    assert not torch.equal(model.network.conv2.weight, before["network.conv2.weight"])


@pytest.mark.parametrize(("implicit", "images"), [(True, 16), (False, 8)])
def test_the_cost_is_counted(implicit, images):
    context = tiny_context("ibau")
    train(tiny_network().eval(), noise(), passes=3, implicit=implicit, context=context)
    assert (context.samples_seen, context.gradient_steps) == (3 * images, 3)


def test_weights_that_become_infinite_are_refused():
    with pytest.raises(ContractError, match="learning_rate"):
        train(tiny_network().eval(), noise(), passes=3, learning_rate=1e30)


# -- the whole -------------------------------------------------------------------------------------


@pytest.mark.parametrize("implicit", [True, False])
def test_buffers_stay_and_weights_change(implicit):
    before = tiny_victim().model
    after = defend(before, implicit=implicit).model
    assert not after.training
    buffers = dict(after.named_buffers())
    assert all(torch.equal(buffers[name], value) for name, value in before.named_buffers())
    assert weights(after).isfinite().all()
    for ours, theirs in zip(after.parameters(), before.parameters(), strict=True):
        assert not torch.equal(ours, theirs)


def test_a_model_in_train_mode_is_put_into_eval_mode():
    model = copy.deepcopy(tiny_victim().model).train()
    after = defend(model).model
    assert torch.equal(after.network.bn1.running_mean, model.network.bn1.running_mean)


def test_without_rounds_nothing_changes():
    result = defend(tiny_victim().model, rounds=0)
    assert torch.equal(weights(result.model), weights(tiny_victim().model))
    assert result.details == {"rounds": [], "reserve_accuracy": 1.0}
    assert result.tensors == {}


def test_the_record_tells_what_each_perturbation_did():
    result = defend(tiny_victim().model, rounds=2, radius=2.0, ascent_rate=0.5, ascent_steps=8)
    assert result.tensors["perturbations"].shape == (2, *SHAPE)
    for told, perturbation in zip(
        result.details["rounds"], result.tensors["perturbations"], strict=True
    ):
        assert told["perturbation_norm"] == pytest.approx(float(perturbation.norm()), rel=1e-5)
        assert told["perturbation_norm"] <= 2 * (1 + 1e-6)
        assert sum(told["predictions"]) == sum(told["predictions_after"]) == 16
        assert len(told["predictions"]) == 4


def test_the_first_perturbation_of_a_backdoored_model_finds_its_target():
    victim = tiny_victim()
    options = {"radius": 2.0, "ascent_rate": 0.3, "ascent_steps": 10, "batch_size": 32}
    [told] = defend(victim.model, victim.reserve, **options).details["rounds"]
    assert told["reserve_accuracy"] == 1.0
    assert told["predictions"][victim.target] > 0.75 * len(victim.reserve)
    assert told["moved"] == pytest.approx(told["predictions"][victim.target] / 128 - 0.25, abs=0.1)


def test_the_batch_that_stands_for_all_is_mixed_even_where_the_reserve_is_sorted(monkeypatch):
    reserve, labels = tiny_images(64, seed=3), []
    by_class = reserve.subset(reserve.labels.argsort(stable=True))

    def watched(model, optimizer, one_pass, inner_batch, *rest):
        labels.append(inner_batch.labels)
        return unlearn(model, optimizer, one_pass, inner_batch, *rest)

    monkeypatch.setattr("backdoorkit_ibau._defense.unlearn", watched)
    defend(tiny_victim().model, by_class, rounds=2, implicit=False)
    assert len(labels[0].unique()) > 1
    assert torch.equal(labels[0], labels[1])


def test_only_the_search_uses_the_fast_arithmetic():
    context = Context(
        method="ibau", seed=0, device=torch.device("cpu"), precision="bfloat16", num_classes=4
    )
    types = []

    def keep(module, images, output):
        types.append(output.dtype)

    model = copy.deepcopy(tiny_victim().model)
    model.network.head.register_forward_hook(keep)
    delta = find_perturbation(
        model, lambda: [one_batch()], torch.zeros(8).long(), 0 * noise(), IBAUConfig(), context
    )
    assert set(types) == {torch.bfloat16}
    types.clear()
    train(model, delta, context=context)
    assert set(types) == {torch.float32}


class Attention(nn.Module):
    """Attention by torch's fused kernel, beside a layer norm."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.LayerNorm(8)
        self.project = nn.Linear(8, 24)
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        query, key, value = self.project(self.norm(tokens)).unsqueeze(1).chunk(3, dim=-1)
        mixed = functional.scaled_dot_product_attention(query, key, value).squeeze(1)
        return self.head((tokens + mixed).mean(dim=1))


class JointAttention(nn.Module):
    """The same with torch's layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.head((tokens + mixed).mean(dim=1))


@pytest.mark.parametrize("network", [Attention, JointAttention])
def test_attention_is_differentiated_twice(network):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network().eval()
    after = defend(model).model
    assert weights(after).isfinite().all()
    assert not torch.equal(weights(after), weights(model))


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images):
        return images * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * 2


class Once(nn.Module):
    """Can be differentiated once by pixels."""

    def __init__(self):
        super().__init__()
        self.network = tiny_network()

    def forward(self, images):
        return self.network(OnceOnly.apply(images))


class Rounded(Once):
    """Cannot be differentiated by pixels at all."""

    def forward(self, images):
        return self.network((images * 255).long() / 255)


def test_a_model_without_second_derivatives_is_refused_with_torchs_reason():
    with pytest.raises(StructureError, match=r"Once has none: .*once_differentiable.*implicit"):
        defend(Once().eval())
    defend(Once().eval(), implicit=False)


def test_a_model_that_ignores_small_changes_of_pixels_is_refused():
    with pytest.raises(StructureError, match="gradients by pixels"):
        defend(Rounded().eval(), implicit=False)


def test_a_model_without_trainable_weights_is_refused():
    with pytest.raises(StructureError, match="trainable"):
        defend(tiny_network().eval().requires_grad_(False))


def test_an_empty_reserve_is_refused():
    empty = ImageSet.from_tensors(
        torch.zeros(0, *SHAPE, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), num_classes=4
    )
    with pytest.raises(InputError, match="empty"):
        defend(tiny_victim().model, empty)


def test_augmentation_is_drawn_and_repeatable():
    options = {"crop_padding": 2, "horizontal_flip": True}
    first, again = (weights(defend(tiny_victim().model, **options).model) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, weights(defend(tiny_victim().model).model))


def test_presets_are_valid_configurations():
    [info] = backdoorkit_defenses()
    paper, official, bench = (
        structure(info.config, info.presets[name])
        for name in ("paper", "official", "backdoorbench")
    )
    assert (paper.project, official.project, bench.project) == (True, False, False)
    assert {p.fixed_point_steps for p in (paper, official, bench)} == {5}
    assert (paper.learning_rate, bench.learning_rate, bench.amsgrad) == (1e-3, 1e-4, True)
    assert IBAUConfig().ascent == "normalized"
    assert IBAUConfig().project
