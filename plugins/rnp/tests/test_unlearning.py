"""Unlearning ends when the clean task is gone, and what is left names the backdoor's label."""

from __future__ import annotations

import pytest
import torch

from backdoorkit.api import InputError
from backdoorkit.testing import tiny_context, tiny_images, tiny_network, tiny_victim
from backdoorkit_rnp import RNPConfig
from backdoorkit_rnp._unlearning import (
    default_stop_accuracy,
    majority_label,
    unlearn_clean,
)


def options(**values):
    return RNPConfig(**{"batch_size": 32, "precision": "float32", **values})


def test_unlearning_goes_uphill_until_accuracy_is_low_enough():
    victim, context = tiny_victim(), tiny_context("rnp")
    before = {name: value.clone() for name, value in victim.model.state_dict().items()}
    unlearned = unlearn_clean(victim.model, victim.reserve, options(), 4, context)
    assert unlearned.accuracy <= 0.5
    assert 1 < unlearned.epochs < 100
    assert context.gradient_steps == unlearned.epochs * 4
    assert not unlearned.model.training
    after = victim.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_unlearning_that_does_not_get_there_is_refused_with_what_to_raise():
    victim, context = tiny_victim(), tiny_context("rnp")
    with pytest.raises(InputError, match=r"0\.500.*after 1 epochs.*raise epochs \(now 1\)"):
        unlearn_clean(victim.model, victim.reserve, options(epochs=1), 4, context)
    with pytest.raises(InputError, match="learning_rate"):
        unlearn_clean(victim.model, victim.reserve, options(epochs=0), 4, context)


@pytest.mark.parametrize(
    ("classes", "expected"), [(2, 0.75), (3, 2 / 3), (4, 0.5), (10, 0.2), (200, 0.01)]
)
def test_where_it_stops_follows_the_number_of_classes(classes, expected):
    assert default_stop_accuracy(classes) == pytest.approx(expected)


def test_the_majority_label_and_its_share():
    logits = torch.eye(4)[[2, 1, 2, 2, 0]]
    assert majority_label(logits) == (2, 0.6)
    assert majority_label(torch.eye(4)[[3, 1, 1, 3]]) == (1, 0.5)


@pytest.mark.parametrize("target", [0, 3])
def test_a_model_biased_towards_a_class_is_found_to_answer_with_it(target):
    model = tiny_network()
    with torch.no_grad():
        model.network.head.bias[target] += 100
    logits = tiny_context("rnp").predict(model, tiny_images(20))
    assert majority_label(logits) == (target, 1.0)


def test_the_unlearned_victim_answers_with_the_backdoor_s_label():
    victim = tiny_victim()
    for seed in range(2):
        context = tiny_context("rnp", seed=seed)
        config = options(stop_accuracy=0.25)
        unlearned = unlearn_clean(victim.model, victim.reserve, config, 4, context)
        label, share = majority_label(context.predict(unlearned.model, victim.test))
        assert label == victim.target
        assert share > 0.4  # of the images 0.25 are of that class
