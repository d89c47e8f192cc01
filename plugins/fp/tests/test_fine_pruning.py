"""Fine-pruning of a network with a backdoor put in by hand: every answer is known."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from backdoorkit import Need, Selection
from backdoorkit.api import DefenseTask, InputError, StructureError
from backdoorkit.errors import OracleNotPermittedError
from backdoorkit.hooks.options import structure
from backdoorkit.testing import (
    PLANTED_CLASSES,
    PLANTED_SHAPE,
    PlantedNetwork,
    planted_context,
    planted_images,
    planted_success,
)
from backdoorkit_fp import FinePruningConfig, backdoorkit_defenses
from backdoorkit_fp._defense import FinePruning
from backdoorkit_fp._pruning import levels


def prune(clean=None, *, oracle=None, model=None, **options):
    options = {"epochs": 0, "precision": "float32", **options}
    model = PlantedNetwork() if model is None else model
    task = DefenseTask(
        method="fp",
        num_classes=PLANTED_CLASSES,
        image_shape=PLANTED_SHAPE,
        resources={
            Need.WEIGHTS: model.eval(),
            Need.CLEAN_SAMPLES: planted_images(160) if clean is None else clean,
        },
    )
    context = planted_context("fp", oracle=oracle)
    defense = FinePruning(FinePruningConfig(**options))
    defense.check(context.structure(model))
    return defense.run(task, context)


def test_the_planted_backdoor_works():
    assert planted_success(PlantedNetwork()) == 1


def test_the_trigger_unit_is_the_least_active_and_the_only_one_pruned():
    result = prune()
    assert result.tensors["order"][0] == PLANTED_CLASSES
    assert result.details["pruned_units"] == 1
    assert result.details["held_out_accuracy_pruned"] == 1
    assert planted_success(result.model) == 0


def test_the_level_before_the_first_violation_is_kept():
    # Every unit after the first costs a class: an eighth of the accuracy.
    result = prune(tolerance=0.3)
    assert result.details["pruned_units"] == 3
    assert result.details["held_out_accuracy_pruned"] == pytest.approx(0.75)
    expected = [1, 1, 7 / 8, 6 / 8, 5 / 8]
    assert result.tensors["held_out_accuracies"][:5].tolist() == pytest.approx(expected)


def test_the_model_that_comes_back_keeps_the_rule_that_chose_its_level():
    result = prune(tolerance=0.3)
    context, details = planted_context("fp"), result.details
    accuracy = context.accuracy(result.model, planted_images(800, seed=2))
    assert accuracy == pytest.approx(details["held_out_accuracy_pruned"], abs=0.01)
    assert accuracy >= details["held_out_accuracy"] - 0.3


def test_pruning_nothing_leaves_the_weights_bit_for_bit():
    before = PlantedNetwork().state_dict()
    after = prune(selection=Selection.FIXED, ratio=0.0).model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_fixed_ratio_needs_no_held_out_part():
    result = prune(planted_images(4), selection=Selection.FIXED, ratio=4 / 9)
    assert result.details["pruned_units"] == 4


def test_pruned_units_stay_at_zero_through_fine_tuning():
    result = prune(epochs=3, learning_rate=0.1, batch_size=16)
    head = result.model.head.weight
    assert torch.equal(head[:, PLANTED_CLASSES], torch.zeros(PLANTED_CLASSES))
    assert not torch.equal(head[:, 0], PlantedNetwork().head.weight[:, 0])
    assert planted_success(result.model) == 0


def test_fine_tuning_is_that_of_a_masked_forward():
    options = {"epochs": 2, "batch_size": 160, "learning_rate": 0.1, "schedule": "constant"}
    result = prune(**options)

    class Masked(PlantedNetwork):
        def forward(self, images):
            features = functional.softplus(self.conv(images), beta=8).flatten(1)
            keep = torch.ones(PLANTED_CLASSES + 1)
            keep[PLANTED_CLASSES] = 0
            return self.head(features * keep)

    twin, clean = Masked(), planted_images(160)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(2):
        optimizer.zero_grad()
        functional.cross_entropy(twin(clean.images.float() / 255), clean.labels).backward()
        optimizer.step()
    torch.testing.assert_close(result.model.conv.weight, twin.conv.weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        result.model.head.weight[:, :PLANTED_CLASSES],
        twin.head.weight[:, :PLANTED_CLASSES],
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_result_loads_into_the_original_architecture():
    result = prune()
    fresh = PlantedNetwork()
    fresh.load_state_dict(copy.deepcopy(result.model.state_dict()))
    images = planted_images(16).images.float() / 255
    assert torch.equal(fresh(images), result.model(images))


def test_the_oracle_takes_the_smallest_level_without_the_backdoor():
    result = prune(oracle=planted_success, selection=Selection.ORACLE, tolerance=0.3)
    assert result.details["pruned_units"] == 1
    assert result.details["selection"] == "oracle"


def test_the_oracle_needs_permission():
    with pytest.raises(OracleNotPermittedError):
        prune(selection=Selection.ORACLE)


def test_the_oracle_sees_pruned_models_and_the_weights_come_back():
    seen = []

    def oracle(model):
        seen.append(int((model.head.weight == 0).all(dim=0).sum()))
        return 1.0  # never a reason to prune

    result = prune(oracle=oracle, selection=Selection.ORACLE, tolerance=0.3)
    assert seen == [0, 1, 2, 3]
    assert torch.equal(result.model.head.weight, PlantedNetwork().head.weight)


@pytest.mark.parametrize("count", [0, 1])
def test_a_reserve_that_cannot_be_split_is_refused(count):
    with pytest.raises(InputError, match="reserve"):
        prune(planted_images(160).subset(torch.arange(count)))


def test_a_head_that_is_no_linear_layer_is_refused():
    class Convolutional(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(1, 5, 3)
            self.head = nn.Conv2d(5, PLANTED_CLASSES, 1)

        def forward(self, images):
            return self.head(self.body(images)).mean(dim=(2, 3))

    with pytest.raises(StructureError, match="linear"):
        prune(model=Convolutional())


class Tokens(nn.Module):
    """A linear head on every pixel of two channels, then ``pool``."""

    def __init__(self, pool):
        super().__init__()
        self.body = nn.Conv2d(1, 2, 3)
        self.head = nn.Linear(2, PLANTED_CLASSES)
        self.pool = pool

    def forward(self, images):
        return self.pool(self.head(self.body(images).flatten(2).transpose(1, 2)))


def test_a_head_of_which_only_one_token_counts_is_refused():
    with pytest.raises(StructureError, match="of its mean input; use another defense"):
        prune(model=Tokens(lambda logits: logits[:, 0]))


def test_a_head_that_is_averaged_over_tokens_is_pruned_as_that_of_their_mean():
    model = Tokens(lambda logits: logits.mean(dim=1))
    result = prune(model=copy.deepcopy(model), selection=Selection.FIXED, ratio=0.5)
    [pruned] = (result.model.head.weight == 0).all(dim=0).nonzero().flatten().tolist()
    with torch.no_grad():
        model.body.weight[pruned], model.body.bias[pruned] = 0, 0
        images = planted_images(8).images.float() / 255
        torch.testing.assert_close(result.model(images), model(images))


def test_presets_are_valid_configurations():
    [info] = backdoorkit_defenses()
    presets = {name: structure(info.config, values) for name, values in info.presets.items()}
    assert set(presets) == {"paper", "backdoorbench", "official"}
    assert list(levels(512, presets["paper"].step))[:3] == [0, 1, 2]
    assert list(levels(512, presets["backdoorbench"].step))[:3] == [0, 6, 12]
    assert presets["official"].epochs == 0
