"""ANP as a whole, on a victim that really is backdoored."""

from __future__ import annotations

import copy
import functools
from statistics import mean

import pytest
import torch
from torch import nn

from backdoorkit import Need, Selection
from backdoorkit.api import (
    ContractError,
    DefenseTask,
    ImageSet,
    InputError,
    StructureError,
    find_structure,
)
from backdoorkit.errors import OracleNotPermittedError
from backdoorkit.hooks.options import structure
from backdoorkit.testing import tiny_context, tiny_images, tiny_victim
from backdoorkit_anp import ANPConfig, backdoorkit_defenses
from backdoorkit_anp._defense import ANP

SHAPE = (3, 16, 16)
QUICK = {"iterations": 10, "batch_size": 16}


def defend(model=None, clean=None, *, seed=0, oracle=False, **options):
    victim = tiny_victim()
    task = DefenseTask(
        method="anp",
        num_classes=4,
        image_shape=SHAPE,
        resources={
            Need.WEIGHTS: copy.deepcopy(victim.model if model is None else model),
            Need.CLEAN_SAMPLES: victim.reserve if clean is None else clean,
        },
    )
    return ANP(ANPConfig(**options)).run(task, tiny_context("anp", seed=seed, oracle=oracle))


@functools.cache
def learnt():
    """Masks of the victim's 56 channels."""
    result = defend(iterations=100, batch_size=32, selection=Selection.FIXED)
    return torch.cat([result.tensors[f"masks.network.{name}"] for name in ("bn1", "bn2")])


def accuracy(model):
    return tiny_context("test").accuracy(model, tiny_victim().test)


def attack_success(model):
    victim = tiny_victim()
    others = victim.triggered.subset((victim.triggered.labels != victim.target).nonzero().flatten())
    predicted = tiny_context("test").predict(model, others).argmax(dim=1)
    return float((predicted == victim.target).float().mean())


def without(units):
    """The victim with the scales of these of its 56 channels at zero."""
    model = copy.deepcopy(tiny_victim().model)
    with torch.no_grad():
        for norm, marked in zip(
            (model.network.bn1, model.network.bn2), units.split([24, 32]), strict=True
        ):
            norm.weight[marked] = 0
    return model


def test_some_threshold_removes_the_backdoor_and_leaves_accuracy():
    before = tiny_victim().model
    assert attack_success(before) > 0.95
    repaired = (without(learnt() <= level) for level in (0.3, 0.5, 0.7, 0.9))
    assert any(
        attack_success(model) < 0.15 and accuracy(model) > accuracy(before) - 0.05
        for model in repaired
    )


def test_the_lowest_masks_hold_the_backdoor_and_as_many_others_do_not():
    lowest = learnt() <= 0.7
    count = int(lowest.sum())
    assert count < 15
    by_chance = []
    for seed in range(4):
        order = torch.randperm(56, generator=torch.Generator().manual_seed(seed))
        by_chance.append(attack_success(without(torch.isin(torch.arange(56), order[:count]))))
    assert attack_success(without(lowest)) < 0.15
    assert mean(by_chance) > 0.6


def test_the_clean_choice_needs_no_word_on_the_trigger():
    result = defend(iterations=100, batch_size=32)
    assert attack_success(result.model) < 0.15
    assert accuracy(result.model) > 0.95
    assert result.details["selection"] == "clean"
    levels = [level for level, _ in result.details["held_out_accuracies"]]
    assert levels == list(ANPConfig().grid)[: len(levels)]
    assert result.details["level"] in levels


def test_only_scales_of_the_pruned_channels_change():
    before = tiny_victim().model.state_dict()
    result = defend(selection=Selection.FIXED, threshold=0.98, **QUICK)
    after = result.model.state_dict()
    differing = {name for name in before if not torch.equal(before[name], after[name])}
    assert differing <= {"network.bn1.weight", "network.bn2.weight"}
    for name in ("network.bn1", "network.bn2"):
        marked = result.tensors[f"masks.{name}"] <= 0.98
        weight = before[f"{name}.weight"].masked_fill(marked, 0)
        assert torch.equal(after[f"{name}.weight"], weight)
        assert result.details["pruned"].get(name, []) == marked.nonzero().flatten().tolist()
    assert 0 < result.details["pruned_units"] < 56
    assert result.details["units"] == 56
    assert result.details["level"] == 0.98


def test_a_number_of_units_is_pruned_from_the_lowest_mask_up():
    result = defend(selection=Selection.FIXED, prune_by="number", number=7, **QUICK)
    assert (result.details["level"], result.details["pruned_units"]) == (7, 7)
    masks = torch.cat(list(result.tensors.values()))
    pruned = torch.cat(
        [result.model.network.get_submodule(name).weight == 0 for name in ("bn1", "bn2")]
    )
    assert masks[pruned].max() <= masks[~pruned].min()


def test_convolutions_without_norms_are_pruned_by_filter():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()
    result = defend(model, selection=Selection.FIXED, prune_by="number", number=2, **QUICK)
    assert list(result.tensors) == ["masks.0"]
    (pruned,) = result.details["pruned"].values()
    assert result.model[0].weight[pruned].abs().sum() == 0
    assert torch.equal(result.model[0].bias, model[0].bias)
    assert torch.equal(result.model[4].weight, model[4].weight)


def test_statistics_decide_what_masks_are_learnt():
    tensors = [
        defend(norm_statistics=statistics, selection=Selection.FIXED, **QUICK).tensors
        for statistics in ("batch", "running")
    ]
    assert not torch.equal(tensors[0]["masks.network.bn1"], tensors[1]["masks.network.bn1"])


def test_the_oracle_needs_permission():
    assert defend(oracle=True, selection=Selection.ORACLE, **QUICK).details["level"] == 0.0
    with pytest.raises(OracleNotPermittedError):
        defend(selection=Selection.ORACLE, **QUICK)


def test_an_empty_reserve_is_refused():
    empty = ImageSet.from_tensors(
        torch.zeros(0, *SHAPE, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), num_classes=4
    )
    with pytest.raises(InputError, match="empty"):
        defend(clean=empty)


def test_a_reserve_too_small_to_choose_on_is_refused():
    with pytest.raises(InputError, match="too small"):
        defend(clean=tiny_images(8))


def test_masks_that_are_not_finite_are_refused():
    model = copy.deepcopy(tiny_victim().model)
    with torch.no_grad():
        model.network.head.weight.fill_(float("nan"))
    with pytest.raises(ContractError, match="not finite"):
        defend(model, selection=Selection.FIXED, **QUICK)


def test_a_model_without_units_to_mask_is_refused_before_anything_runs():
    only_a_head = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    with pytest.raises(StructureError, match="anp"):
        ANP(ANPConfig()).check(find_structure(only_a_head, SHAPE))
    no_norm = nn.Sequential(nn.Conv2d(3, 4, 16), nn.ReLU(), nn.Flatten(), nn.Linear(4, 4))
    with pytest.raises(StructureError, match="norm"):
        ANP(ANPConfig(units="norm")).check(find_structure(no_norm, SHAPE))


@pytest.mark.parametrize("grid", [(0.3, 0.1), (0.1, 0.1)])
def test_a_grid_that_does_not_ascend_is_refused(grid):
    with pytest.raises(ValueError, match="ascend"):
        ANPConfig(grid=grid)


def test_presets_are_valid_configurations():
    [info] = backdoorkit_defenses()
    paper, official, benchmark = (
        structure(info.config, info.presets[name])
        for name in ("paper", "official", "backdoorbench")
    )
    assert (paper.project, paper.selection, paper.threshold) == (True, Selection.FIXED, 0.2)
    assert (official.project, official.learning_rate) == (False, 0.2)
    assert (benchmark.learning_rate, benchmark.selection) == (0.01, Selection.ORACLE)
