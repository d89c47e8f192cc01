"""Repair by unlearning and by pruning."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from backdoorkit import Need
from backdoorkit.api import Batch, DefenseTask, InputError, StructureError, find_structure
from backdoorkit.hooks.options import structure as configure
from backdoorkit.testing import tiny_context, tiny_victim
from backdoorkit_nc import RepairConfig, backdoorkit_defenses
from backdoorkit_nc._defense import NeuralCleanseRepair
from backdoorkit_nc._unlearning import ReversedTriggerUnlearning


def repair(planted, model=None, clean=None, **options):
    model = planted.model() if model is None else model
    task = DefenseTask(
        method="nc",
        num_classes=planted.classes,
        image_shape=planted.shape,
        resources={
            Need.WEIGHTS: model.eval(),
            Need.CLEAN_SAMPLES: planted.images(160) if clean is None else clean,
        },
    )
    options = {**planted.quick, "threshold": 4.0, "precision": "float32", **options}
    return NeuralCleanseRepair(RepairConfig(**options)).run(task, planted.context())


def repair_tiny(**options):
    """The trained victim; its four classes call for a lower threshold."""
    victim = tiny_victim()
    task = DefenseTask(
        method="nc",
        num_classes=4,
        image_shape=(3, 16, 16),
        resources={
            Need.WEIGHTS: copy.deepcopy(victim.model),
            Need.CLEAN_SAMPLES: victim.reserve,
        },
    )
    quick = {"inversion_steps": 25, "inversion_batches": 2, "threshold": 0.9}
    options = {**quick, "precision": "float32", **options}
    return NeuralCleanseRepair(RepairConfig(**options)).run(task, tiny_context("nc"))


def rates(model):
    """Accuracy, and success of the true trigger on images of the other classes."""
    victim, context = tiny_victim(), tiny_context("nc")
    predicted = context.predict(model, victim.triggered).argmax(dim=1)
    others = victim.test.labels != victim.target
    success = float((predicted[others] == victim.target).float().mean())
    return context.accuracy(model, victim.test), success


# -- nothing flagged -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unlearning", "pruning"])
def test_a_model_without_flagged_class_is_returned_bit_for_bit(planted, kind):
    clean = planted.model(vote=0.0)
    result = repair(planted, clean, repair=kind, inversion_steps=60)
    expected = planted.model(vote=0.0).state_dict()
    assert all(torch.equal(expected[k], v) for k, v in result.model.state_dict().items())
    assert result.details["flagged"] == []
    assert result.details["repair"] == "none"
    assert "unchanged" in result.details["reason"]
    assert result.tensors["masks"].shape == (8, 1, 8, 8)


# -- unlearning ------------------------------------------------------------------------------------


def test_unlearning_removes_a_trained_backdoor_and_keeps_the_accuracy():
    before = rates(tiny_victim().model)
    assert before[1] > 0.95
    result = repair_tiny(epochs=6)
    assert result.details["flagged"] == [tiny_victim().target]
    accuracy, success = rates(result.model)
    assert success < 0.2
    assert accuracy > before[0] - 0.05
    assert result.details["success_before"]["0"] > 0.9
    assert result.details["success_after"]["0"] < 0.1
    assert result.details["unlearning_epochs"] == 6


def test_unlearning_may_end_early_on_held_out_images():
    result = repair_tiny(epochs=30, unlearning_stop=0.05)
    assert result.details["unlearning_stop"] == "trigger-removed"
    assert result.details["unlearning_epochs"] < 30
    assert result.details["success_after"]["0"] <= 0.05


def batch_of(count):
    images = torch.full((count, 1, 2, 2), 0.5)
    return Batch(images, torch.arange(count) % 4, torch.arange(count))


def hooks_for(values, ratio=0.2, **options):
    """Triggers that paint the whole image with one value each."""
    values = torch.tensor(values)[:, None, None, None]
    full = torch.ones(len(values), 1, 2, 2)
    generator = torch.Generator().manual_seed(0)
    return ReversedTriggerUnlearning(
        full, values * full, ratio=ratio, generator=generator, **options
    )


def test_a_fifth_of_a_batch_is_stamped_under_its_true_labels():
    batch = batch_of(10)
    stamped = hooks_for([1.0]).transform_batch(batch, 0)
    assert stamped.images.flatten(1).mean(dim=1).tolist() == [1.0] * 2 + [0.5] * 8
    assert torch.equal(stamped.labels, batch.labels)
    assert (batch.images == 0.5).all()


def test_every_flagged_class_has_its_share_even_in_small_batches():
    hooks = hooks_for([0.0, 0.1, 0.2, 0.3])
    drawn = torch.cat(
        [hooks.transform_batch(batch_of(10), 0).images[:2, 0, 0, 0] for _ in range(200)]
    )
    counts = torch.bincount((10 * drawn).round().long())
    assert counts.sum() == 400
    assert (counts > 70).all()


def test_a_resumed_training_draws_the_same_triggers():
    hooks, values = hooks_for([0.0, 1.0], ratio=1.0), []
    hooks.transform_batch(batch_of(8), 0)
    state = hooks.state()
    for again in (hooks, hooks_for([0.0, 1.0], ratio=1.0)):
        again.load_state(state)
        values.append(again.transform_batch(batch_of(50), 1).images)
    assert torch.equal(*values)


def test_the_model_is_judged_in_eval_mode_and_trained_on():
    modes = []

    def is_done(model):
        modes.append(model.training)
        return True

    model = nn.BatchNorm2d(1).train()
    assert hooks_for([1.0], is_done=is_done).after_epoch(model, 0, None)
    assert modes == [False]
    assert model.training
    assert not hooks_for([1.0]).after_epoch(model, 0, None)


# -- pruning ---------------------------------------------------------------------------------------


def test_exactly_the_planted_unit_is_pruned(planted):
    result = repair(planted, repair="pruning")
    assert result.details["pruned_units"] == [planted.classes]
    assert result.details["pruning_stop"] == "trigger-removed"
    assert result.details["held_out_accuracy_pruned"] == 1
    assert result.details["success_before"]["0"] > 0.9
    assert result.details["success_after"]["0"] == 0
    assert planted.attack_success(result.model) == 0
    assert planted.context().accuracy(result.model, planted.images(160, seed=2)) == 1
    expected = planted.model().state_dict()
    expected["head.weight"][:, planted.classes] = 0
    assert all(torch.equal(expected[k], v) for k, v in result.model.state_dict().items())


def test_no_more_than_the_largest_share_is_pruned(planted):
    result = repair(planted, repair="pruning", largest_share=0.1)  # of nine units: none
    assert result.details["pruned_units"] == []
    assert result.details["pruning_stop"] == "largest-share"


def test_what_the_sweep_says_is_what_the_pruned_model_does():
    result = repair_tiny(repair="pruning", tolerance=1.0, largest_share=0.5)
    count = len(result.details["pruned_units"])
    assert count > 0
    success = result.tensors["held_out_successes"][count]
    assert result.details["success_after"]["0"] == pytest.approx(float(success), abs=1e-6)
    assert rates(result.model)[1] < rates(tiny_victim().model)[1]


# -- refusals --------------------------------------------------------------------------------------


def convolutional(planted):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def test_pruning_needs_a_linear_head_and_unlearning_does_not(planted):
    structure = find_structure(convolutional(planted), planted.shape)
    with pytest.raises(StructureError, match=r"'2' of Sequential is of kind 'conv'"):
        NeuralCleanseRepair(RepairConfig(repair="pruning")).check(structure)
    NeuralCleanseRepair(RepairConfig()).check(structure)


def test_two_classes_are_refused(planted):
    structure = find_structure(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), planted.shape)
    with pytest.raises(StructureError, match="at least 3"):
        NeuralCleanseRepair(RepairConfig()).check(structure)


def test_a_reserve_too_small_to_be_split_is_refused_before_the_inversion(planted, monkeypatch):
    monkeypatch.setattr("backdoorkit_nc._defense.examine", lambda *_: pytest.fail("too late"))
    with pytest.raises(InputError, match="too small to hold out"):
        repair(planted, clean=planted.images(16), repair="pruning")


def test_presets_are_valid():
    (info,) = backdoorkit_defenses()
    configs = {name: configure(info.config, preset) for name, preset in info.presets.items()}
    assert configs["official"] == configs["paper"] == RepairConfig()
    assert configs["backdoorbench"].epochs == 100
