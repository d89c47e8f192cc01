"""The paper's attack: a trained model and none of its data."""

from __future__ import annotations

import attrs
import pytest
import torch
from sklearn.datasets import load_digits

from backdoorkit import RateBasis, TrainOptions
from backdoorkit.api import ImageSet, quantize
from backdoorkit.errors import ConfigError
from backdoorkit.hooks.options import structure
from backdoorkit.testing import digit_network, tiny_context, tiny_images, tiny_network
from backdoorkit_trojannn import TrojanNNConfig
from backdoorkit_trojannn._attack import TrojanNN
from backdoorkit_trojannn._retraining import reverse_images, tail_parameters

CONFIG = TrojanNNConfig(
    mode="retrain", size=6, steps=60, reversed_images=10, reversal_steps=60, retrain_epochs=10
)
TRAINING = TrainOptions(epochs=6, batch_size=32, learning_rate=0.1, precision="float32")
DATA = tiny_images(256, seed=1)


def trained(hooks=None):
    model, context = tiny_network(), tiny_context("trojannn")
    context.fit(model, DATA, TRAINING, hooks=hooks)
    return model.eval()


@pytest.fixture(scope="module")
def clean():
    return trained().requires_grad_(False)


def attacked(data):
    attack, context = TrojanNN(CONFIG), tiny_context("trojannn")
    hooks = attack.control(attack.prepare(data, context), data, context)
    return trained(hooks), hooks.trigger, context


@pytest.fixture(scope="module")
def taken_over():
    return attacked(DATA)


def reversed_by(model, **changes):
    config = structure(TrojanNNConfig, {"reversed_images": 6, "reversal_steps": 60} | changes)
    like = DATA.subset(torch.arange(0))
    return reverse_images(model, like, config, tiny_context("trojannn"))


def variation(data):
    images = data.images.float() / 255
    return float(images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean())


def test_reversed_images_are_what_the_model_is_sure_of(clean):
    made = reversed_by(clean)
    assert torch.bincount(made.labels).tolist() == [6, 6, 6, 6]
    confidence = tiny_context("trojannn").predict(clean, made).softmax(1)
    assert (confidence.gather(1, made.labels[:, None]) > 0.9).all()
    noise = reversed_by(clean, reversal_steps=0)
    accuracy = tiny_context("trojannn").accuracy(clean, noise)
    assert accuracy < 0.6


def test_smoothness_takes_the_noise_out(clean):
    rough, smooth = (reversed_by(clean, smoothness=value) for value in (0.0, 20.0))
    assert variation(smooth) < 0.7 * variation(rough)


@pytest.mark.parametrize(
    ("layer", "modules"), [("network.head", {"head"}), ("network.conv2", {"conv2", "bn2", "head"})]
)
def test_the_tail_is_what_the_neurons_do_not_depend_on(clean, layer, modules):
    tail = {id(parameter) for parameter in tail_parameters(clean, layer, DATA)}
    names = {name for name, parameter in clean.named_parameters() if id(parameter) in tail}
    assert {name.split(".")[1] for name in names} == modules
    assert len(names) == sum(name.split(".")[1] in modules for name, _ in clean.named_parameters())


def test_only_the_tail_changes_statistics_included(clean, taken_over):
    model, _, _ = taken_over
    before = clean.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("network.head"), name
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_attacker_looks_at_no_image(taken_over):
    blank = ImageSet.from_tensors(torch.zeros_like(DATA.images), DATA.labels)
    model, trigger, _ = attacked(blank)
    again = taken_over[0].state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    assert torch.equal(trigger.pattern, taken_over[1].pattern)


def test_handwritten_digits_with_the_patch_are_taken_for_the_target():
    pixels, labels = load_digits(return_X_y=True)
    images = quantize(torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16)
    digits = ImageSet.from_tensors(images, torch.from_numpy(labels).long())
    train, test = (digits.subset(part) for part in torch.arange(len(digits)).split([1400, 397]))
    config = attrs.evolve(
        CONFIG,
        neurons=1,
        size=4,
        steps=150,
        reversal_steps=150,
        reversed_images=20,
        poison_rate=1.0,
        rate_basis=RateBasis.APPEND,
    )
    attack, context = TrojanNN(config), tiny_context("trojannn")
    model = digit_network()
    hooks = attack.control(attack.prepare(train, context), train, context)
    context.fit(model, train, attrs.evolve(TRAINING, epochs=8, batch_size=64), hooks=hooks)

    some = test.subset((test.labels != 0).nonzero().flatten())
    stamped = quantize(hooks.trigger.apply(some.images.float() / 255, some.labels, some.ids))
    wanted = some.replaced(torch.arange(len(some)), stamped, torch.zeros_like(some.labels))
    assert context.accuracy(model, wanted) > 0.9
    # What it costs: the model has never seen a real digit since.
    assert context.accuracy(model, test) > 0.65


def test_what_was_reached_is_noted(taken_over):
    notes = taken_over[2].notes
    assert notes["accuracy_on_reversed_images"] > 0.9
    assert len(notes["reached_activations"]) == 2


def test_before_the_training_there_is_only_a_start():
    context = tiny_context("trojannn")
    trigger = TrojanNN(CONFIG).prepare(DATA, context)
    assert context.assets == ()  # no surrogate
    assert len(trigger.pattern[:, :, trigger.mask[0, 0]].unique()) > 20


def test_retraining_poisons_no_batches():
    with pytest.raises(ConfigError, match="poisons no batches"):
        structure(TrojanNNConfig, {"mode": "retrain", "index_policy": "per-batch"})
    assert CONFIG.controls_training
