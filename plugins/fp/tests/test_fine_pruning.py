"""Fine-pruning of a network with a backdoor put in by hand: every answer is known."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from backdoorkit import Need, Selection
from backdoorkit.api import Context, DefenseTask, ImageSet, InputError, StructureError
from backdoorkit.errors import OracleNotPermittedError
from backdoorkit.hooks.options import structure
from backdoorkit_fp import FinePruningConfig, backdoorkit_defenses
from backdoorkit_fp._defense import FinePruning
from backdoorkit_fp._pruning import levels

CLASSES = 8
SHAPE = (1, 8, 8)


class Planted(nn.Module):
    """Unit k looks for row k and votes for class k; the last looks for a lit corner and votes 0."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, CLASSES + 1, 8)
        self.head = nn.Linear(CLASSES + 1, CLASSES)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            for row in range(CLASSES):
                self.conv.weight[row, 0, row, :6] = 1 / 6
                self.head.weight[row, row] = 10
            self.conv.weight[CLASSES, 0, -2:, -2:] = 1
            self.conv.bias[CLASSES] = -2
            self.head.weight[0, CLASSES] = 30

    def forward(self, images):
        return self.head(functional.softplus(self.conv(images), beta=8).flatten(1))


def images_of(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    images = 0.35 * torch.rand(count, *SHAPE, generator=generator)
    images[torch.arange(count), 0, labels, :6] += 0.4
    return ImageSet.from_tensors((images * 255).round().to(torch.uint8), labels)


def attack_success(model):
    """Share of lit-corner images of the other classes that are called class 0."""
    test = images_of(160, seed=1)
    images = test.images.float() / 255
    images[..., -2:, -2:] = 1
    with torch.no_grad():
        predicted = model(images[test.labels != 0]).argmax(dim=1)
    return float((predicted == 0).float().mean())


def prune(clean=None, *, oracle=None, model=None, **options):
    options = {"epochs": 0, "precision": "float32", **options}
    model = Planted() if model is None else model
    task = DefenseTask(
        method="fp",
        num_classes=CLASSES,
        image_shape=SHAPE,
        resources={
            Need.WEIGHTS: model.eval(),
            Need.CLEAN_SAMPLES: images_of(160) if clean is None else clean,
        },
    )
    context = Context(
        method="fp",
        seed=0,
        device=torch.device("cpu"),
        image_shape=SHAPE,
        num_classes=CLASSES,
        precision="float32",
        oracle=oracle,
    )
    defense = FinePruning(FinePruningConfig(**options))
    defense.check(context.structure(model))
    return defense.run(task, context)


def test_the_planted_backdoor_works():
    assert attack_success(Planted()) == 1


def test_the_trigger_unit_is_the_least_active_and_the_only_one_pruned():
    result = prune()
    assert result.tensors["order"][0] == CLASSES
    assert result.details["pruned_units"] == 1
    assert result.details["held_out_accuracy_pruned"] == 1
    assert attack_success(result.model) == 0


def test_the_level_before_the_first_violation_is_kept():
    # Every unit after the first costs a class: an eighth of the accuracy.
    result = prune(tolerance=0.3)
    assert result.details["pruned_units"] == 3
    assert result.details["held_out_accuracy_pruned"] == pytest.approx(0.75)
    expected = [1, 1, 7 / 8, 6 / 8, 5 / 8]
    assert result.tensors["held_out_accuracies"][:5].tolist() == pytest.approx(expected)


def test_pruning_nothing_leaves_the_weights_bit_for_bit():
    before = Planted().state_dict()
    after = prune(selection=Selection.FIXED, ratio=0.0).model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_fixed_ratio_needs_no_held_out_part():
    result = prune(images_of(4), selection=Selection.FIXED, ratio=4 / 9)
    assert result.details["pruned_units"] == 4


def test_pruned_units_stay_at_zero_through_fine_tuning():
    result = prune(epochs=3, learning_rate=0.1, batch_size=16)
    head = result.model.head.weight
    assert torch.equal(head[:, CLASSES], torch.zeros(CLASSES))
    assert not torch.equal(head[:, 0], Planted().head.weight[:, 0])
    assert attack_success(result.model) == 0


def test_fine_tuning_is_that_of_a_masked_forward():
    options = {"epochs": 2, "batch_size": 160, "learning_rate": 0.1, "schedule": "constant"}
    result = prune(**options)

    class Masked(Planted):
        def forward(self, images):
            features = functional.softplus(self.conv(images), beta=8).flatten(1)
            keep = torch.ones(CLASSES + 1)
            keep[CLASSES] = 0
            return self.head(features * keep)

    twin, clean = Masked(), images_of(160)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(2):
        optimizer.zero_grad()
        functional.cross_entropy(twin(clean.images.float() / 255), clean.labels).backward()
        optimizer.step()
    torch.testing.assert_close(result.model.conv.weight, twin.conv.weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        result.model.head.weight[:, :CLASSES], twin.head.weight[:, :CLASSES], rtol=1e-4, atol=1e-5
    )


def test_the_result_loads_into_the_original_architecture():
    result = prune()
    fresh = Planted()
    fresh.load_state_dict(copy.deepcopy(result.model.state_dict()))
    images = images_of(16).images.float() / 255
    assert torch.equal(fresh(images), result.model(images))


def test_the_oracle_takes_the_smallest_level_without_the_backdoor():
    result = prune(oracle=attack_success, selection=Selection.ORACLE, tolerance=0.3)
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
    assert torch.equal(result.model.head.weight, Planted().head.weight)


@pytest.mark.parametrize("count", [0, 1])
def test_a_reserve_that_cannot_be_split_is_refused(count):
    with pytest.raises(InputError, match="reserve"):
        prune(images_of(160).subset(torch.arange(count)))


def test_a_head_that_is_no_linear_layer_is_refused():
    class Convolutional(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(1, 5, 3)
            self.head = nn.Conv2d(5, CLASSES, 1)

        def forward(self, images):
            return self.head(self.body(images)).mean(dim=(2, 3))

    with pytest.raises(StructureError, match="linear"):
        prune(model=Convolutional())


class Tokens(nn.Module):
    """A linear head on every pixel of two channels, then ``pool``."""

    def __init__(self, pool):
        super().__init__()
        self.body = nn.Conv2d(1, 2, 3)
        self.head = nn.Linear(2, CLASSES)
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
        images = images_of(8).images.float() / 255
        torch.testing.assert_close(result.model(images), model(images))


def test_presets_are_valid_configurations():
    [info] = backdoorkit_defenses()
    presets = {name: structure(info.config, values) for name, values in info.presets.items()}
    assert set(presets) == {"paper", "backdoorbench", "official"}
    assert list(levels(512, presets["paper"].step))[:3] == [0, 1, 2]
    assert list(levels(512, presets["backdoorbench"].step))[:3] == [0, 6, 12]
    assert presets["official"].epochs == 0
