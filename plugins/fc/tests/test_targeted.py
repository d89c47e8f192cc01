"""Chosen test images: who is attacked, with which poisons, and what becomes of it."""

from __future__ import annotations

import pytest
import torch

from backdoorkit.api import InputError, SampleKind
from backdoorkit.errors import ConfigError, NeedNotDeclaredError
from backdoorkit.hooks.options import structure
from backdoorkit_fc import FCConfig, backdoorkit_attacks
from backdoorkit_fc._targeted import FeatureCollision, nearest_bases
from backdoorkit_fc._transfer import Extractor

FEW = FCConfig(poison_rate=0.1, source_class=4)
SCRATCH = FCConfig(
    victim="from-scratch", surrogate_epochs=3, poison_rate=0.1, targets=3, steps=60, target=2
)


@pytest.fixture(scope="module")
def attacked(digits):
    """A transferred victim: model, trigger, context."""
    return digits.victim(FeatureCollision(FEW))


@pytest.fixture(scope="module")
def poisoned(digits):
    attack, context = FeatureCollision(SCRATCH), digits.context()
    trigger = attack.prepare(digits.train, context)
    return trigger, attack.poison(digits.train, trigger, context), context


# -- who is attacked -------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [None, 7])
def test_attacked_images_are_test_images_of_other_classes(digits, source):
    attack = FeatureCollision(FCConfig(targets=5, target=3, source_class=source))
    trigger = attack.prepare(digits.train, digits.context())
    at = torch.isin(digits.test.ids, trigger.ids).nonzero().flatten()
    assert len(at) == 5
    labels = digits.test.labels[at]
    assert (labels != 3).all() if source is None else (labels == 7).all()
    order = trigger.ids.argsort()
    assert torch.equal(digits.test.images[at], trigger.images[order])


def test_only_they_are_attacked_and_nothing_is_planted(digits):
    attack = FeatureCollision(FCConfig(targets=5, target=3))
    trigger = attack.prepare(digits.train, digits.context())
    wanted = attack.wanted_labels(trigger, digits.test.labels, digits.test.ids, 10)
    chosen = torch.isin(digits.test.ids, trigger.ids)
    assert (wanted[chosen] == 3).all()
    assert (wanted[~chosen] == -1).all()
    images = digits.test.images.float() / 255
    assert torch.equal(trigger.apply(images, digits.test.labels, digits.test.ids), images)


def test_without_test_images_there_is_nobody_to_attack(digits):
    with pytest.raises(NeedNotDeclaredError, match="test images"):
        FeatureCollision(FCConfig()).prepare(digits.train, digits.context(test_data=None))


def test_more_targets_than_images_are_refused(digits):
    with pytest.raises(InputError, match="set fewer targets"):
        FeatureCollision(FCConfig(targets=500)).prepare(digits.train, digits.context())


# -- poisons ---------------------------------------------------------------------------------------


def test_poisons_keep_their_label_and_are_as_many_as_the_rate_says(digits, poisoned):
    _, result, _ = poisoned
    members = int((digits.train.labels == 2).sum())
    chosen = result.poisoned_positions
    assert len(chosen) == round(0.1 * members)
    assert torch.equal(result.data.labels, digits.train.labels)
    assert (result.data.labels[chosen] == 2).all()
    assert not (result.kinds == SampleKind.COVER).any()
    others = result.kinds == SampleKind.CLEAN
    assert torch.equal(result.data.images[others], digits.train.images[others])


def test_poisons_come_close_to_their_goals_in_the_features_of_the_surrogate(poisoned):
    _, _, context = poisoned
    notes = context.notes
    assert notes["feature_distance_of_poisons"] < 0.2 * notes["feature_distance_of_bases"]
    assert 0 < notes["mean_pixel_change"] < notes["largest_pixel_change"] <= 1


def test_the_surrogate_takes_poisons_for_what_they_collide_with(digits, attacked):
    """The victim's own features, before its last layer was trained again."""
    _, trigger, _ = attacked
    before, _, context = digits.victim()
    logits = context.predict(
        before,
        digits.train.replaced(
            trigger.positions, trigger.poisons, digits.train.labels[trigger.positions]
        ).subset(trigger.positions),
    )
    assert (logits.argmax(1) == 4).float().mean() > 0.9


def test_nearest_bases_are_taken_once_and_the_first_chooses_first():
    distances = torch.tensor([[5.0, 1.0, 2.0, 9.0], [1.0, 0.0, 3.0, 2.0]])
    owner = torch.tensor([0, 1, 0, 1])
    assert nearest_bases(distances, owner).tolist() == [1, 0, 2, 3]


def test_a_rate_of_zero_changes_nothing(digits):
    attack = FeatureCollision(FCConfig(poison_rate=0.0, victim="from-scratch", surrogate_epochs=0))
    context = digits.context()
    result = attack.poison(digits.train, attack.prepare(digits.train, context), context)
    assert len(result.poisoned_positions) == 0
    assert torch.equal(result.data.images, digits.train.images)


# -- transfer --------------------------------------------------------------------------------------


def test_a_few_poisons_turn_the_attacked_image_and_cost_no_accuracy(digits, attacked, clean):
    model, trigger, context = attacked
    attack = FeatureCollision(FEW)
    assert digits.success(clean, attack, trigger) == 0
    assert digits.success(model, attack, trigger) == 1
    accuracies = [context.accuracy(m, digits.test) for m in (model, clean)]
    assert accuracies[0] > accuracies[1] - 0.03


def test_only_the_last_layer_is_trained_again(attacked, clean):
    model, _, _ = attacked
    before = clean.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("head"), name


def test_a_frozen_set_holds_the_poisons_of_the_transferred_victim(digits, attacked):
    _, trigger, _ = attacked
    attack, context = FeatureCollision(FEW), digits.context()
    restored = attack.restore(trigger.state())
    result = attack.freeze(digits.train, restored, context)
    assert torch.equal(result.data.images[trigger.positions], trigger.poisons)
    assert context.assets == ()  # no surrogate was asked for
    assert len(result.poisoned_positions) == len(trigger.positions)


def test_looking_into_a_model_leaves_it_alone(digits, clean):
    clean.train()
    Extractor.of(clean, digits.train)(digits.train.images[:5].float() / 255)
    assert clean.training
    assert all(parameter.requires_grad for parameter in clean.parameters())
    clean.eval()


# -- configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate_basis": "all"}, "keep their label"),
        ({"label_map": "all-to-all"}, "keep their label"),
        ({"index_policy": "per-batch"}, "made beforehand"),
        ({"source_class": 2, "target": 2}, "choose another"),
    ],
)
def test_contradictions_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        structure(FCConfig, values)


def test_the_training_is_controlled_only_for_a_transfer():
    assert FCConfig().controls_training
    assert not FCConfig(victim="from-scratch").controls_training
    assert FeatureCollision(SCRATCH).control(None, None, None) is None


def test_presets_are_valid():
    for info in backdoorkit_attacks():
        for values in info.presets.values():
            structure(info.config, values)
