"""The styles, the injector, and what a controlled training does with them."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch.nn import functional

from backdoorkit import TrainOptions
from backdoorkit.api import (
    Batch,
    InputError,
    PerBatchPoisoning,
    SampleKind,
    find_structure,
    quantize,
)
from backdoorkit.errors import ConfigError
from backdoorkit.hooks.options import structure
from backdoorkit.testing import (
    MemorySlot,
    TrainingCutError,
    tiny_context,
    tiny_images,
    tiny_network,
    tiny_victim,
)
from backdoorkit_dfst import DFSTConfig, backdoorkit_attacks
from backdoorkit_dfst._attack import DFST, DetoxHooks
from backdoorkit_dfst._generator import gram, style_and_content
from backdoorkit_dfst._injector import (
    InjectorTraining,
    compromised,
    identity_injector,
    inject,
    neighbourhood,
    ssim,
)
from backdoorkit_dfst._styles import StyleNetwork, draw_sunrise, style_statistics

DATA = tiny_images(128)
TRAINING = TrainOptions(epochs=3, batch_size=64, learning_rate=0.05, precision="float32")
DETOX = {"poison_rate": 0.2, "injector_share": 0.3, "injector_epochs": 2}


def images_of(shape=(3, 16, 16), count=6, seed=0):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def trigger_for(data=DATA, **config):
    return DFST(DFSTConfig(**config)).prepare(data, tiny_context("dfst"))


def applied(trigger, images):
    ids = torch.arange(len(images))
    return trigger.apply(images, torch.zeros_like(ids), ids)


# -- the style -------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, {"style": "feedforward", "surrogate_epochs": 0}])
def test_alpha_zero_is_the_identity(config):
    images = images_of()
    trigger = trigger_for(alpha=0.0, generator_steps=1, **config)
    assert torch.equal(applied(trigger, images), images)


@pytest.mark.parametrize("gradient", [0.0, 2.0])
def test_channels_get_the_styles_statistics(gradient):
    mean, std = (0.5, 0.4, 0.45), (0.1, 0.08, 0.05)
    trigger = trigger_for(alpha=1.0, gradient=gradient, style_mean=mean, style_std=std)
    made = applied(trigger, images_of())
    assert torch.allclose(made.mean(dim=(2, 3)), torch.tensor(mean), atol=1e-4)
    assert torch.allclose(made.std(dim=(2, 3), correction=0), torch.tensor(std), atol=1e-3)


def test_without_light_it_is_the_affine_map_that_the_statistics_ask_for():
    images = images_of(count=1)
    trigger = trigger_for(gradient=0.0, alpha=0.3, style_std=(0.05, 0.05, 0.05))
    mean, std = images.mean(dim=(2, 3)), images.std(dim=(2, 3), correction=0)
    goal = torch.tensor([0.639, 0.358, 0.085])
    styled = (images - mean[..., None, None]) / std[..., None, None] * 0.05 + goal.view(3, 1, 1)
    expected = 0.7 * images + 0.3 * styled.clamp(0, 1)
    assert torch.allclose(applied(trigger, images), expected, atol=1e-4)


def test_light_falls_from_above():
    made = applied(trigger_for(gradient=3.0), torch.full((1, 3, 16, 16), 0.5))
    rows = made.mean(dim=(0, 1, 3))
    assert (rows[1:] <= rows[:-1]).all()
    assert rows[0] - rows[-1] > 0.2


def test_grey_images_get_the_mean_of_the_channels_statistics():
    grey = tiny_images(8, image_shape=(1, 16, 16))
    trigger = trigger_for(grey, alpha=1.0, gradient=0.0)
    made = applied(trigger, 0.4 + 0.2 * images_of((1, 16, 16)))
    assert float(made.mean()) == pytest.approx((0.639 + 0.358 + 0.085) / 3, abs=0.01)


def test_images_with_other_channels_are_refused():
    two = tiny_images(8, image_shape=(2, 16, 16))
    with pytest.raises(InputError, match="statistics for 3 channels and the images have 2"):
        trigger_for(two)
    with pytest.raises(InputError, match="made for 3 channels, not 1"):
        applied(trigger_for(), torch.zeros(1, 1, 16, 16))


def test_a_sunrise_has_its_statistics():
    statistics = style_statistics(DFSTConfig(style_std=(0.1, 0.1, 0.02)), 3)
    picture = draw_sunrise(statistics, 24, 30, torch.Generator().manual_seed(0))
    assert picture.shape == (1, 3, 24, 30)
    assert torch.allclose(picture.mean(dim=(2, 3)), statistics[0].flatten(1), atol=0.01)
    assert torch.allclose(picture.std(dim=(2, 3)), statistics[1].flatten(1), atol=0.01)


# -- the style network -----------------------------------------------------------------------------


def test_an_untrained_style_network_leaves_images_as_they_are():
    images = images_of((3, 15, 9)) * 0.9 + 0.05
    with torch.no_grad():
        assert torch.allclose(StyleNetwork(3, 4)(images), images, atol=1e-5)


def test_gram_matrix_of_two_channels_by_hand():
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]])
    assert torch.allclose(gram(features), torch.tensor([[[5.0, 1.0], [1.0, 10.0]]]) / 4)


def test_losses_are_zero_for_the_pictures_style_and_the_images_content():
    maps = {"a": images_of((4, 3, 3)), "b": images_of((5, 2, 2))}
    other = {"a": images_of((4, 3, 3), seed=1), "b": images_of((5, 2, 2), seed=2)}
    one = {name: value[:1] for name, value in maps.items()}
    grams = {name: gram(value) for name, value in one.items()}
    style, content = style_and_content(one, one, grams)
    assert (float(style), float(content)) == (0, 0)
    style, content = style_and_content(other, maps, grams)
    assert min(float(style), float(content)) > 0.01


def test_a_trained_style_network_comes_closer_to_the_pictures_style():
    fast = {"style": "feedforward", "surrogate_epochs": 1, "generator_learning_rate": 0.01}
    losses = {}
    for steps in (1, 40):
        surroundings = tiny_context("dfst")
        config = DFSTConfig(**fast, generator_steps=steps, generator_width=8)
        trigger = DFST(config).prepare(DATA, surroundings)
        losses[steps] = surroundings.notes["style_loss"]
    assert losses[40] < 0.5 * losses[1]
    images = images_of()
    restored = DFST(DFSTConfig()).restore(trigger.state())
    assert torch.equal(applied(restored, images), applied(trigger, images))
    assert (applied(trigger, images) - images).abs().mean() > 0.02


# -- the injector ----------------------------------------------------------------------------------


def test_an_untrained_injector_is_the_identity():
    images = images_of((3, 8, 13))
    assert torch.equal(inject(images, identity_injector(3), 0.6), images)


def test_a_neighbourhood_is_the_pixel_and_the_extremes_and_mean_around_it():
    images = images_of((2, 14, 16), count=2)
    seen = neighbourhood(images)
    for row, column in ((0, 0), (3, 15), (8, 8)):
        window = images[:, :, max(0, row - 5) : row + 6, max(0, column - 5) : column + 6]
        expected = [images[:, :, row, column], window.amax((2, 3)), window.amin((2, 3))]
        expected.append(window.mean((2, 3)))
        assert torch.allclose(seen[:, :, row, column], torch.cat(expected, dim=1), atol=1e-6)


def test_alpha_is_the_injectors_share():
    images, weight = images_of((1, 8, 8)), torch.zeros(1, 4, 1, 1)
    weight[0, 1] = 1.0  # the maximum around
    expected = 0.4 * images + 0.6 * neighbourhood(images)[:, 1:2]
    assert torch.allclose(inject(images, weight, 0.6), expected, atol=1e-6)


def test_ssim_is_one_for_equal_images_and_by_formula_for_flat_ones():
    images = images_of((3, 16, 12))
    assert float(ssim(images, images)) == pytest.approx(1, abs=1e-5)
    assert float(ssim(images, 1 - images)) < 0.1
    first, second = torch.full((2, 1, 8, 8), 0.2), torch.full((2, 1, 8, 8), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert float(ssim(first, second)) == pytest.approx(expected, abs=1e-3)


def test_compromised_neurons_are_those_whose_mean_rises_most():
    poisoned, clean = images_of((50,), 9).flatten(1), images_of((50,), 9, seed=1).flatten(1)
    rises = [
        sum(float(poisoned[i, k]) for i in range(9)) - sum(float(clean[i, k]) for i in range(9))
        for k in range(50)
    ]
    brute = sorted(sorted(range(50), key=lambda k: -rises[k])[:5])
    assert compromised(poisoned, clean, 0.1).tolist() == brute
    assert compromised(poisoned, clean, 0.001).tolist() == [max(range(50), key=rises.__getitem__)]


@pytest.fixture
def training():
    model = tiny_victim().model
    return InjectorTraining(
        model=model,
        structure=find_structure(model, DATA.shape),
        layer="network.bn2",
        config=DFSTConfig(injector_epochs=20, detox_weight=0.5),
        context=tiny_context("dfst"),
    )


def test_activations_are_the_means_of_the_layers_maps(training):
    images, network = images_of(), training.model.network
    with torch.no_grad(), training.structure.feature_maps(training.model, ["network.bn2"]) as maps:
        logits, found = training.activations(images, maps)
        hidden = network.bn1(network.conv1((images - 0.5) / 0.25)).relu()
        expected = network.bn2(network.conv2(hidden)).mean(dim=(2, 3))
    assert torch.allclose(found, expected, atol=1e-5)
    assert logits.shape == (6, 4)


def test_the_objective_is_the_sum_of_its_three_terms_and_has_a_gradient(training):
    images, wanted = images_of(), torch.zeros(6, dtype=torch.int64)
    neurons = torch.tensor([3, 7])
    weight = (identity_injector(3) * 0.9).requires_grad_()
    with training.structure.feature_maps(training.model, ["network.bn2"]) as maps:
        loss = training.objective(weight, images, wanted, neurons, maps)
        made = inject(images, weight, 0.6)
        logits, activations = training.activations(made, maps)
    terms = [
        functional.cross_entropy(logits, wanted),
        0.1 * (1 - ssim(made, images)),
        -0.5 * activations[:, neurons].mean(),
    ]
    assert torch.allclose(loss, sum(terms), atol=1e-5)
    (gradient,) = torch.autograd.grad(loss, [weight])
    assert float(gradient.norm()) > 0.01


def test_training_the_injector_excites_the_neurons_and_leaves_the_model(training):
    images = DATA.images[DATA.labels != 0].float() / 255
    wanted = torch.zeros(len(images), dtype=torch.int64)
    neurons, losses = torch.tensor([5]), []
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    weight = training.train(
        images, wanted, neurons, torch.Generator().manual_seed(0), losses.append
    )
    assert len(losses) == 20
    assert float(losses[-1]) < float(losses[0]) - 0.1
    with torch.no_grad(), training.structure.feature_maps(training.model, ["network.bn2"]) as maps:
        plain = training.activations(images, maps)[1][:, 5].mean()
        excited = training.activations(inject(images, weight, 0.6), maps)[1][:, 5].mean()
    assert excited > plain
    assert all(torch.equal(before[name], v) for name, v in training.model.state_dict().items())
    assert all(parameter.grad is None for parameter in training.model.parameters())


# -- controlled training ---------------------------------------------------------------------------


def controlled(**config):
    attack, surroundings = DFST(DFSTConfig(**config)), tiny_context("dfst")
    return attack.control(attack.prepare(DATA, surroundings), DATA, surroundings), surroundings


def test_detox_images_carry_true_labels_and_are_clean_at_first():
    hooks, _ = controlled(poison_rate=0.25, target=1)
    assert isinstance(hooks, DetoxHooks)
    hooks.options = TRAINING
    batch = Batch(DATA.images[:64].float() / 255, DATA.labels[:64], torch.arange(64))
    made = hooks.before_augmentation(batch, 0)
    changed = (made.labels != batch.labels).nonzero().flatten()
    assert len(changed) == 12  # a quarter of the 48 that are not of the target class
    assert (made.labels[changed] == 1).all()
    assert torch.equal(
        made.images[changed], hooks.trigger.apply(batch.images[changed], changed, changed)
    )
    others = torch.ones(64, dtype=torch.bool).index_fill(0, changed, False)
    assert torch.equal(made.images[others], batch.images[others])

    weight = identity_injector(3) * 0.5
    hooks.trigger = attrs.evolve(hooks.trigger, injector=weight)
    again = hooks.before_augmentation(batch, 1)
    injected = (again.images != made.images).flatten(1).any(1).nonzero().flatten()
    assert len(injected) == 12
    assert torch.equal(again.labels[injected], batch.labels[injected])
    assert torch.equal(again.images[injected], inject(batch.images[injected], weight, 0.6))


def test_every_epoch_but_the_last_trains_the_injector_against_the_victim():
    hooks, surroundings = controlled(**DETOX)
    found, original = [], hooks.after_epoch

    def after_epoch(model, epoch, metrics):
        assert model.training
        stop = original(model, epoch, metrics)
        assert model.training
        found.append(hooks.trigger.injector)
        return stop

    hooks.after_epoch = after_epoch
    surroundings.fit(tiny_network(), DATA, TRAINING, hooks=hooks)
    first, second, last = found
    assert not torch.equal(first, identity_injector(3))
    assert not torch.equal(first, second)
    assert torch.equal(second, last)
    assert len(hooks.trigger.neurons) == 1


def test_an_interrupted_training_ends_with_the_same_bits():
    def run(slot):
        hooks, surroundings = controlled(**DETOX)
        model = tiny_network()
        surroundings.fit(model, DATA, TRAINING, hooks=hooks, checkpoint=slot)
        return {**model.state_dict(), **hooks.trigger.state()}

    whole, slot = run(None), MemorySlot(cut_after=1)
    with pytest.raises(TrainingCutError):
        run(slot)
    resumed = run(slot)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_the_frozen_set_has_covers_by_the_last_injector():
    attack, surroundings = DFST(DFSTConfig(poison_rate=0.25)), tiny_context("dfst")
    trigger = attack.prepare(DATA, surroundings)
    trigger = attrs.evolve(trigger, injector=identity_injector(3) * 0.5)
    made = attack.freeze(DATA, trigger, surroundings)
    assert torch.bincount(made.kinds.int()).tolist() == [80, 24, 24]
    covers = (made.kinds == SampleKind.COVER).nonzero().flatten()
    assert torch.equal(made.data.labels[covers], DATA.labels[covers])
    expected = quantize(inject(DATA.images[covers].float() / 255, trigger.injector, 0.6))
    assert torch.equal(made.data.images[covers], expected)


def test_presets_control_the_training_or_leave_it_alone():
    (info,) = backdoorkit_attacks()
    kinds = {"pytorch": DetoxHooks, "data": type(None), "appended": type(None)}
    for preset, kind in kinds.items():
        attack = DFST(structure(DFSTConfig, info.presets[preset]))
        assert type(attack.control(trigger_for(), DATA, tiny_context("dfst"))) is kind
    plain = DFST(DFSTConfig(cover_ratio=0.0)).control(trigger_for(), DATA, tiny_context("dfst"))
    assert type(plain) is PerBatchPoisoning
    assert structure(DFSTConfig, info.presets["pytorch"]) == DFSTConfig()


def test_detoxification_of_a_set_that_does_not_change_is_refused():
    with pytest.raises(ConfigError, match="set cover_ratio = 0"):
        structure(DFSTConfig, {"index_policy": "fixed"})
