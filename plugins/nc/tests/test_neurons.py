"""Units that a trigger excites: watching them, and removing them."""

from __future__ import annotations

import pytest
import torch

from backdoorkit.api import InputError
from backdoorkit.testing import tiny_context, tiny_victim
from backdoorkit_nc._neurons import (
    excitation,
    fit_filter,
    head_pass,
    other_classes,
    units_to_prune,
)
from backdoorkit_nc.filters import InputFilter


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- watching --------------------------------------------------------------------------------------


def test_excitation_is_the_mean_change_of_each_unit():
    clean = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    triggered = torch.tensor([[4.0, 1.0], [2.0, 0.0]])
    assert excitation(clean, triggered).tolist() == [2.0, -0.5]


def test_a_filter_watches_the_most_excited_units():
    clean, change = random(100, 250), torch.arange(250.0)
    watch = fit_filter(clean, change, share=0.01, false_positives=0.05)
    assert watch.units.tolist() == [249, 248, 247]
    torch.testing.assert_close(watch.score(clean), clean[:, 247:].mean(dim=1))


def test_a_filter_watches_at_least_one_unit():
    watch = fit_filter(random(10, 4), torch.tensor([0.0, 3.0, 1.0, 2.0]), share=0.01,
                       false_positives=0.1)  # fmt: skip
    assert watch.units.tolist() == [1]


def test_its_threshold_is_the_quantile_of_the_clean_scores():
    clean = torch.arange(101.0)[:, None]
    watch = fit_filter(clean, torch.ones(1), share=1.0, false_positives=0.05)
    assert watch.threshold == pytest.approx(95.0)
    assert float(watch.rejects(clean).float().mean()) == pytest.approx(5 / 101)


def test_scores_above_the_threshold_are_rejected():
    watch = InputFilter(units=torch.tensor([0, 2]), threshold=1.0)
    features = torch.tensor([[1.0, 9.0, 1.0], [1.0, 0.0, 1.5], [-5.0, 0.0, 8.0]])
    assert watch.score(features).tolist() == [1.0, 1.25, 1.5]
    assert watch.rejects(features).tolist() == [False, True, True]


def test_a_filter_made_with_the_true_trigger_rejects_it_and_lets_clean_images_pass():
    victim, context = tiny_victim(), tiny_context("nc")
    structure = context.structure(victim.model)
    mask, pattern = torch.zeros(1, 16, 16), torch.ones(3, 16, 16)
    mask[:, -4:, -4:] = 1
    others = other_classes(victim.reserve, victim.target)
    clean, _ = head_pass(victim.model, structure, victim.reserve, context)
    before, _ = head_pass(victim.model, structure, others, context)
    after, _ = head_pass(victim.model, structure, others, context, (mask, pattern))
    watch = fit_filter(clean, excitation(before, after), share=0.1, false_positives=0.05)

    test = other_classes(victim.test, victim.target)
    fresh, _ = head_pass(victim.model, structure, test, context)
    triggered, _ = head_pass(victim.model, structure, test, context, (mask, pattern))
    assert float(watch.rejects(triggered).float().mean()) > 0.95
    assert float(watch.rejects(fresh).float().mean()) < 0.2


def test_there_must_be_images_of_other_classes(planted):
    data = planted.images(80)
    assert len(other_classes(data, 3)) == 70
    alone = data.subset((data.labels == 3).nonzero().flatten())
    with pytest.raises(InputError, match="the flagged class 3"):
        other_classes(alone, 3)


# -- removing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracies", "successes", "expected"),
    [
        ([0.9, 0.9, 0.89, 0.88], [1.0, 0.5, 0.0, 0.0], (2, "trigger-removed")),
        ([0.9, 0.89, 0.6, 0.6], [1.0, 0.9, 0.0, 0.0], (1, "accuracy")),
        ([0.9, 0.9, 0.9, 0.9], [1.0, 0.9, 0.8, 0.7], (3, "largest-share")),
        ([0.9, 0.5], [1.0, 0.0], (0, "accuracy")),
        ([0.9, 0.5], [0.0, 0.0], (0, "trigger-removed")),
    ],
)
def test_pruning_ends_when_the_trigger_is_gone_or_accuracy_would_be(
    accuracies, successes, expected
):
    found = units_to_prune(
        torch.tensor(accuracies), torch.tensor(successes), tolerance=0.05, stop=0.01
    )
    assert found == expected
