"""RNP as a whole, on a victim that really is backdoored."""

from __future__ import annotations

import copy
from statistics import mean

import pytest
import torch
from torch import nn

from backdoorkit import Need, Selection
from backdoorkit.api import (
    DefenseTask,
    ImageSet,
    InputError,
    StructureError,
    find_structure,
)
from backdoorkit.errors import OracleNotPermittedError
from backdoorkit.hooks.options import structure
from backdoorkit.testing import tiny_context, tiny_victim
from backdoorkit_rnp import RNPConfig, backdoorkit_defenses
from backdoorkit_rnp._defense import RNP

SHAPE = (3, 16, 16)
NORMS = ("bn1", "bn2")


def defend(clean=None, *, seed=0, oracle=False, **options):
    victim = tiny_victim()
    task = DefenseTask(
        method="rnp",
        num_classes=4,
        image_shape=SHAPE,
        resources={
            Need.WEIGHTS: copy.deepcopy(victim.model),
            Need.CLEAN_SAMPLES: victim.reserve if clean is None else clean,
        },
    )
    options = {"precision": "float32", "recovery_epochs": 10, **options}
    return RNP(RNPConfig(**options)).run(task, tiny_context("rnp", seed=seed, oracle=oracle))


def accuracy(model):
    return tiny_context("test").accuracy(model, tiny_victim().test)


def attack_success(model):
    victim = tiny_victim()
    others = victim.triggered.subset((victim.triggered.labels != victim.target).nonzero().flatten())
    predicted = tiny_context("test").predict(model, others).argmax(dim=1)
    return float((predicted == victim.target).float().mean())


def pruned_at_random(count, seed):
    order = torch.randperm(56, generator=torch.Generator().manual_seed(seed))
    marked = torch.isin(torch.arange(56), order[:count])
    model = copy.deepcopy(tiny_victim().model)
    with torch.no_grad():
        for name, part in zip(NORMS, marked.split([24, 32]), strict=True):
            model.network.get_submodule(name).weight[part] = 0
    return model


def test_the_backdoor_goes_and_most_accuracy_stays():
    assert attack_success(tiny_victim().model) > 0.95
    result = defend()
    assert attack_success(result.model) < 0.15
    assert accuracy(result.model) > 0.85
    by_chance = [
        attack_success(pruned_at_random(result.details["pruned_units"], seed)) for seed in range(4)
    ]
    assert mean(by_chance) > 0.5


def test_only_scales_of_the_pruned_channels_change():
    before = tiny_victim().model.state_dict()
    result = defend(selection=Selection.FIXED, threshold=0.0, recovery_epochs=20)
    after = result.model.state_dict()
    differing = {name for name in before if not torch.equal(before[name], after[name])}
    assert differing <= {"network.bn1.weight", "network.bn2.weight"}
    for name in ("network.bn1", "network.bn2"):
        clamped = result.tensors[f"masks.{name}"] == 0
        weight = before[f"{name}.weight"].masked_fill(clamped, 0)
        assert torch.equal(after[f"{name}.weight"], weight)
        assert result.details["pruned"].get(name, []) == clamped.nonzero().flatten().tolist()
    assert 0 < result.details["pruned_units"] < 56
    assert attack_success(result.model) < 0.15


def test_the_record_tells_what_happened():
    victim = tiny_victim()
    details = defend(batch_size=32, stop_accuracy=0.25, recovery_epochs=2).details
    assert details["backdoor_label"] == victim.target
    assert 0.25 < details["backdoor_label_share"] <= 1
    assert details["unlearning_accuracy"] <= 0.25
    assert 0 < details["unlearning_epochs"] < 100
    assert len(details["recovery_accuracies"]) == details["recovery_epochs"] == 2
    assert (details["layers"], details["units"]) == (2, 56)
    assert (details["selection"], details["prune_by"]) == ("clean", "threshold")
    assert details["held_out_accuracies"][0][0] == 0.0


def test_a_number_of_units_is_pruned():
    options = {"selection": Selection.FIXED, "prune_by": "number", "number": 8}
    details = defend(batch_size=32, recovery_epochs=2, **options).details
    assert (details["level"], details["pruned_units"]) == (8, 8)


def test_unlearning_that_does_not_get_there_is_refused():
    with pytest.raises(InputError, match="raise epochs"):
        defend(epochs=2)


def test_the_oracle_needs_permission():
    options = {"batch_size": 32, "recovery_epochs": 1, "selection": Selection.ORACLE}
    assert defend(oracle=True, **options).details["selection"] == "oracle"
    with pytest.raises(OracleNotPermittedError):
        defend(**options)


def test_an_empty_reserve_is_refused():
    empty = ImageSet.from_tensors(
        torch.zeros(0, *SHAPE, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), num_classes=4
    )
    with pytest.raises(InputError, match="empty"):
        defend(empty)


def test_a_model_without_units_to_mask_is_refused_before_anything_runs():
    only_a_head = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    with pytest.raises(StructureError, match="rnp"):
        RNP(RNPConfig()).check(find_structure(only_a_head, SHAPE))


@pytest.mark.parametrize("grid", [(0.3, 0.1), (0.1, 0.1)])
def test_a_grid_that_does_not_ascend_is_refused(grid):
    with pytest.raises(ValueError, match="ascend"):
        RNPConfig(grid=grid)


def test_presets_are_valid_configurations():
    [info] = backdoorkit_defenses()
    paper, official, benchmark = (
        structure(info.config, info.presets[name])
        for name in ("paper", "official", "backdoorbench")
    )
    assert (paper.stop_accuracy, paper.epochs, paper.schedule) == (0.1, 20, "step")
    assert (official.stop_accuracy, official.epochs) == (0.2, 21)
    assert (benchmark.selection, benchmark.threshold) == (Selection.FIXED, 0.7)
    assert paper.gradient_clip is official.gradient_clip is None
