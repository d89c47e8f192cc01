"""The observations as analyses: known answers, and what they find on a victim."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import nn
from torch.nn import functional

from backdoorkit.api import ContractError, ImageSet, InputError, StructureError, find_structure
from backdoorkit.errors import NeedNotDeclaredError
from backdoorkit.pipeline import envelope
from backdoorkit.testing import tiny_context, tiny_images, tiny_network, tiny_victim
from backdoorkit_tsbd import (
    ActivenessConfig,
    UnlearningCorrelationConfig,
    backdoorkit_analyses,
)
from backdoorkit_tsbd._correlation import agreement, pearson, ranks, spearman, standardised
from backdoorkit_tsbd._neuron_activeness import NeuronActiveness, activeness
from backdoorkit_tsbd._unlearning_correlation import UnlearningCorrelation, with_random_labels

SHAPE = (3, 16, 16)
LAST = "network.conv2.weight"
INFO = {info.name: info for info in backdoorkit_analyses()}


def analyse(analysis, name, *, clean=None, **truth):
    victim = tiny_victim()
    resources = victim.resources()
    if clean is not None:
        resources.clean = clean
    known = attrs.evolve(victim.truth(), **truth)
    return envelope.run_analysis(analysis, INFO[name], resources, known, tiny_context(name))


# -- correlation -----------------------------------------------------------------------------------


def test_pearson_and_spearman_of_known_vectors():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert pearson(x, 5 - 2 * x) == pytest.approx(-1)
    assert pearson(x, torch.tensor([1.0, -1.0, -1.0, 1.0])) == pytest.approx(0)
    assert pearson(x, torch.tensor([2.0, 1.0, 4.0, 3.0])) == pytest.approx(0.6)
    assert spearman(x, x.exp()) == pytest.approx(1)
    assert pearson(x, x.exp()) < 0.95


def test_what_does_not_vary_has_no_correlation():
    assert pearson(torch.ones(3), torch.tensor([1.0, 2.0, 3.0])) is None
    assert spearman(torch.ones(3), torch.tensor([1.0, 2.0, 3.0])) is None


def test_equal_values_share_the_mean_rank():
    assert ranks(torch.tensor([30.0, 10.0, 30.0, 20.0])).tolist() == [3.5, 1, 3.5, 2]


def test_the_order_of_neurons_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(50, generator=generator) for _ in range(2))
    order = torch.randperm(50, generator=generator)
    for correlation in (pearson, spearman):
        assert correlation(x[order], y[order]) == pytest.approx(correlation(x, y))


def test_a_difference_between_layers_is_no_agreement_within_them():
    x = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([101.0, 102.0])}
    y = {"a": torch.tensor([2.0, 1.0]), "b": torch.tensor([102.0, 101.0])}
    found = agreement(x, y)
    assert found.pearson > 0.99
    assert found.within_layers == pytest.approx(-1)
    assert found.by_layer["a"] == (pytest.approx(-1), pytest.approx(-1))
    assert standardised({"a": torch.tensor([5.0, 5.0])}).tolist() == [0, 0]


# -- observation 1 ---------------------------------------------------------------------------------


def test_the_same_images_twice_change_the_same_neurons():
    config = UnlearningCorrelationConfig(stop_success=0.25)
    values = analyse(
        UnlearningCorrelation(config), "unlearning-correlation", plant=lambda data: data
    ).values
    # Not exactly: the batches come in another order.
    for name in ("r", "rho", "r within", "r last"):
        assert values[name] > 0.9
    assert values["random r"] < 0.9


def test_on_a_victim_both_unlearnings_change_the_same_neurons():
    result = analyse(UnlearningCorrelation(UnlearningCorrelationConfig()), "unlearning-correlation")
    assert result.values["r"] > 0.3
    runs = result.details["runs"]
    assert runs["victim"]["clean_accuracy"] <= 0.25
    assert runs["victim"]["other_accuracy"] <= 0.05
    assert runs["victim"]["neurons"] == 56
    # Controls take the steps of the victim, not more and not fewer.
    epochs = {run["other_epochs"] for run in runs.values()}
    assert epochs == {runs["victim"]["other_epochs"]}
    assert result.details["success"] > 0.95
    assert result.details["last_layer"] == LAST
    assert [len(result.tensors[f"{run}.other.{LAST}"]) for run in runs] == [32] * 3
    assert set(result.figures) == {"weight-change", "by-layer"}


def test_random_labels_are_never_the_own_and_images_stay():
    data = tiny_images(400)
    drawn = with_random_labels(data, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.images, data.images)
    assert bool((drawn.labels != data.labels).all())
    assert torch.bincount((drawn.labels - data.labels) % 4).tolist()[1:] == pytest.approx(
        [133] * 3, abs=30
    )


def test_it_needs_the_attack_and_the_twin():
    with pytest.raises(ContractError, match="'clean-twin'"):
        analyse(
            UnlearningCorrelation(UnlearningCorrelationConfig()),
            "unlearning-correlation",
            clean_twin=None,
        )


# -- observation 2 ---------------------------------------------------------------------------------


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * 16 * 16, 4)

    def forward(self, images):
        return self.head(images.flatten(1))


def test_activeness_is_the_gradient_s_l1_norm_by_row_meaned_over_batches():
    torch.manual_seed(0)
    model, data = Linear(), tiny_images(32)
    config = ActivenessConfig(batch_size=32)
    found = activeness(model, ("head.weight",), data, config, tiny_context("activeness"))
    loss = functional.cross_entropy(model(data.images.float() / 255), data.labels)
    (gradient,) = torch.autograd.grad(loss, model.head.weight)
    torch.testing.assert_close(found["head.weight"], gradient.abs().sum(dim=1))


def test_steps_are_taken_where_asked_for_and_in_a_copy():
    model, data = tiny_network(), tiny_images(64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    still, moving = (
        activeness(
            model,
            (LAST,),
            data,
            ActivenessConfig(batch_size=32, update=update, unlearning_rate=0.1),
            tiny_context("activeness"),
        )[LAST]
        for update in (False, True)
    )
    assert not torch.equal(still, moving)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert not model.training or model.training is tiny_network().training


def test_a_model_is_as_active_as_itself():
    result = analyse(
        NeuronActiveness(ActivenessConfig()),
        "activeness",
        clean_twin=lambda: tiny_victim().model,
    )
    assert result.values["ratio"] == result.values["ratio all"] == 1
    assert result.values["above median"] == 0.5
    assert result.values["loss"] == result.values["twin loss"]


def test_a_model_with_larger_gradients_is_more_active():
    # Half the head's weights give softer answers, a higher loss, and so larger gradients.
    doubled = tiny_victim().resources().model
    with torch.no_grad():
        doubled.network.head.weight.mul_(0.5)
    result = analyse(NeuronActiveness(ActivenessConfig()), "activeness", clean_twin=lambda: doubled)
    assert result.values["ratio"] < 0.9
    assert result.values["above median"] < 0.4
    assert result.values["twin loss"] > result.values["loss"]


# -- refusals --------------------------------------------------------------------------------------

BOTH = [
    (UnlearningCorrelation(UnlearningCorrelationConfig()), "unlearning-correlation"),
    (NeuronActiveness(ActivenessConfig()), "activeness"),
]


@pytest.mark.parametrize(("analysis", "name"), BOTH)
def test_a_model_without_neurons_to_rank_is_refused_in_the_analysis_s_name(analysis, name):
    with pytest.raises(StructureError, match=name):
        analysis.check(find_structure(Linear(), SHAPE))


@pytest.mark.parametrize(("analysis", "name"), BOTH)
def test_an_empty_reserve_is_refused(analysis, name):
    empty = ImageSet.from_tensors(
        torch.zeros(0, *SHAPE, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), num_classes=4
    )
    with pytest.raises(InputError, match="empty"):
        analyse(analysis, name, clean=empty)


def test_test_images_are_out_of_reach():
    class Curious(NeuronActiveness):
        def run(self, task, context):
            return task.test

    with pytest.raises(NeedNotDeclaredError):
        analyse(Curious(ActivenessConfig()), "activeness")
