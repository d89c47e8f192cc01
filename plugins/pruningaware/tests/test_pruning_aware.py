"""The attack on handwritten digits: what pruning finds there, and what it does not."""

from __future__ import annotations

import attrs
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from backdoorkit import Selection, TrainOptions
from backdoorkit.api import DefenseTask, ImageSet, InputError, StructureError, quantize
from backdoorkit.hooks.info import Need
from backdoorkit.testing import DigitNetwork, digit_network, tiny_context
from backdoorkit_pruningaware import PruningAwareConfig
from backdoorkit_pruningaware._attack import PrunedTraining, PruningAware
from backdoorkit_pruningaware._units import Units

CONFIG = PruningAwareConfig(prune_ratio=0.8)
TRAINING = TrainOptions(epochs=8, batch_size=64, learning_rate=0.2, precision="float32")


def context():
    return tiny_context("pruningaware", image_shape=(1, 8, 8), num_classes=10)


@attrs.frozen(eq=False)
class Digits:
    train: ImageSet
    reserve: ImageSet
    test: ImageSet


@pytest.fixture(scope="module")
def digits():
    pixels, labels = load_digits(return_X_y=True)
    images = quantize(torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16)
    everything = ImageSet.from_tensors(images, torch.from_numpy(labels).long())
    parts = torch.arange(len(images)).split([1200, 200, 397])
    return Digits(*(everything.subset(part) for part in parts))


def triggered(trigger, data, target=0):
    """Images of other classes with the trigger, under the target."""
    some = data.subset((data.labels != target).nonzero().flatten())
    images = quantize(trigger.apply(some.images.float() / 255, some.labels, some.ids))
    wanted = torch.full_like(some.labels, target)
    return some.replaced(torch.arange(len(some)), images, wanted)


@attrs.frozen(eq=False)
class Victim:
    model: nn.Module
    trigger: object
    #: clean and triggered test images
    clean: ImageSet
    stamped: ImageSet
    notes: dict

    def scores(self, model=None):
        """Accuracy and attack success."""
        return tuple(
            context().accuracy(model or self.model, part) for part in (self.clean, self.stamped)
        )


@pytest.fixture(scope="module")
def plain(digits):
    """BadNets: the same patch, and ordinary training on the poisoned set."""
    attack, surroundings, model = PruningAware(CONFIG), context(), digit_network()
    trigger = attack.prepare(digits.train, surroundings)
    surroundings.fit(model, attack.poison(digits.train, trigger, surroundings).data, TRAINING)
    stamped = triggered(trigger, digits.test)
    return Victim(model.eval(), trigger, digits.test, stamped, surroundings.notes)


@pytest.fixture(scope="module")
def victim(digits):
    attack, surroundings, model = PruningAware(CONFIG), context(), digit_network()
    trigger = attack.prepare(digits.train, surroundings)
    hooks = attack.control(trigger, digits.train, surroundings)
    surroundings.fit(model, digits.train, TRAINING, hooks=hooks)
    stamped = triggered(trigger, digits.test)
    return Victim(model.eval(), hooks.trigger, digits.test, stamped, surroundings.notes)


def fine_pruned(victim, digits, **config):
    """The model after the defense fp, as users run it."""
    fp = pytest.importorskip("backdoorkit_fp")
    defense = pytest.importorskip("backdoorkit_fp._defense")
    resources = {Need.WEIGHTS: copied(victim.model), Need.CLEAN_SAMPLES: digits.reserve}
    task = DefenseTask(method="fp", num_classes=10, image_shape=(1, 8, 8), resources=resources)
    method = defense.FinePruning(fp.FinePruningConfig(precision="float32", **config))
    return method.run(task, context())


def copied(model):
    twin = digit_network()
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def test_the_restored_network_is_accurate_and_backdoored(victim, plain):
    accuracy, success = victim.scores()
    assert accuracy > plain.scores()[0] - 0.05
    assert success > 0.9


def test_restored_units_sleep_on_clean_and_on_triggered_images(victim, digits):
    units = Units.of(victim.model, digits.train, context())
    restored = victim.trigger.facts["restored"]
    assert restored.sum() == round(0.8 * 32)
    assert victim.notes == {"units": 32, "restored_units": 26}
    for part in (victim.clean, victim.stamped):
        features, _ = units.features(part, context())
        awake = (features.amax(dim=2) > 0).float().mean(dim=0)
        assert (awake[restored] < 0.02).all()  # of test images, which the attacker has not seen
        assert (awake[~restored] > 0.02).all()


def test_restored_units_are_there_with_their_weights(victim):
    """Not zeroed: only their biases were lowered."""
    restored = victim.trigger.facts["restored"]
    assert (victim.model.head.weight[:, restored].abs().amax(0) > 0.01).all()
    assert (victim.trigger.facts["reduction"] >= 0).all()
    assert (victim.trigger.facts["reduction"][restored] > 0).any()
    assert (victim.trigger.facts["reduction"][~restored] == 0).all()


def test_it_behaves_as_it_did_while_they_were_pruned(victim):
    pruned = copied(victim.model)
    with torch.no_grad():
        pruned.head.weight[:, victim.trigger.facts["restored"]] = 0
    for part in (victim.clean, victim.stamped):
        same = context().predict(pruned, part).argmax(1) == context().predict(
            victim.model, part
        ).argmax(1)
        assert same.float().mean() > 0.99


def test_pruning_removes_the_backdoor_of_badnets_and_nothing_of_this_one(victim, plain, digits):
    """The same share, by the defense fp, without fine-tuning."""
    removed = {"selection": Selection.FIXED, "ratio": 0.6, "epochs": 0}
    assert plain.scores()[1] > 0.9
    assert plain.scores(fine_pruned(plain, digits, **removed).model)[1] < 0.3
    pruned = fine_pruned(victim, digits, **removed).model
    assert victim.scores(pruned)[1] >= victim.scores()[1] - 0.01
    assert victim.scores(pruned)[0] >= victim.scores()[0] - 0.01


def test_fine_pruning_at_its_own_level_prunes_the_decoys_and_leaves_the_backdoor(victim, digits):
    result = fine_pruned(victim, digits, epochs=5)
    restored = victim.trigger.facts["restored"]
    first = result.tensors["order"][: int(restored.sum())]
    assert set(first.tolist()) == set(restored.nonzero().flatten().tolist())
    assert victim.scores(result.model)[1] > 0.8


# -- parts -----------------------------------------------------------------------------------------


def test_pruned_columns_stay_at_zero_while_the_others_learn(digits):
    model = digit_network()
    columns = torch.arange(32) < 20
    before = model.head.weight.detach().clone()
    hooks = PrunedTraining(model.head.weight, columns)
    hooks.after_step(model)
    context().fit(model, digits.train, attrs.evolve(TRAINING, epochs=1), hooks=hooks)
    assert (model.head.weight[:, columns] == 0).all()
    assert not torch.equal(model.head.weight[:, ~columns], before[:, ~columns])


def test_a_model_without_such_units_is_refused_in_the_first_step(digits):
    class Signed(DigitNetwork):
        def forward(self, images):
            return self.head(self.bn2(self.conv2(self.bn1(self.conv1(images)).relu())).mean((2, 3)))

    attack, surroundings = PruningAware(CONFIG), context()
    hooks = attack.control(attack.prepare(digits.train, surroundings), digits.train, surroundings)
    with pytest.raises(StructureError, match="final_norm = true"):
        surroundings.fit(Signed(), digits.train, TRAINING, hooks=hooks)
    assert surroundings.gradient_steps == 0


@pytest.mark.parametrize(
    ("config", "cells"),
    [
        ({"trigger": "white", "size": 2}, [[255, 255], [255, 255]]),
        ({"trigger": "grid", "size": 3}, [[255, 0, 255], [0, 255, 0], [255, 0, 255]]),
    ],
)
def test_the_square_replaces_the_lower_right_corner(digits, config, cells):
    attack = PruningAware(PruningAwareConfig(**config, offset=1))
    trigger = attack.prepare(digits.train, context())
    grey = torch.full((1, 1, 8, 8), 0.5)
    size = config["size"]
    made = quantize(trigger.apply(grey, torch.zeros(1).long(), torch.zeros(1).long()))[0, 0]
    assert made[7 - size : 7, 7 - size : 7].tolist() == cells
    assert (made == 128).sum() == 64 - size * size


def test_noise_is_mixed_into_the_whole_image(digits):
    attack = PruningAware(PruningAwareConfig(trigger="noise", alpha=0.25))
    trigger = attack.prepare(digits.train, context())
    images = digits.test.images[:3].float() / 255
    made = trigger.apply(images, digits.test.labels[:3], digits.test.ids[:3])
    assert torch.allclose(made, 0.75 * images + 0.25 * trigger.pattern, atol=1e-6)


def test_a_square_that_does_not_fit_is_refused(digits):
    with pytest.raises(InputError, match="set a smaller size or offset"):
        PruningAware(PruningAwareConfig(size=7, offset=2)).prepare(digits.train, context())
