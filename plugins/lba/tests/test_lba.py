"""The patch in feature space, the teacher it is latent in, and the student that wakes it."""

from __future__ import annotations

import copy

import attrs
import pytest
import torch
from torch import nn
from torch.nn import functional

from backdoorkit import TrainOptions
from backdoorkit.api import Batch, InputError, PerBatchPoisoning, TrainingHooks, quantize
from backdoorkit.errors import ConfigError
from backdoorkit.hooks.options import structure
from backdoorkit.testing import (
    MemorySlot,
    TrainingCutError,
    tiny_context,
    tiny_images,
    tiny_network,
    tiny_twin,
)
from backdoorkit_lba import LBAConfig, backdoorkit_attacks
from backdoorkit_lba._attack import LBA, SingleTaskHooks, StudentHooks, split_by_target
from backdoorkit_lba._cut import Cut, copy_weights
from backdoorkit_lba._teacher import (
    Injection,
    extended_head,
    find_patch,
    make_teacher,
    teacher_task,
    weight_of_features,
)
from backdoorkit_lba._trigger import Patch, draw_mask, optimize_pattern

DATA = tiny_images(128)
PIXELS = DATA.images.float() / 255
FAST = {
    "surrogate_epochs": 2,
    "surrogate_batch_size": 64,
    "trigger_images": 64,
    "trigger_epochs": 4,
    "extension_epochs": 1,
    "injection_epochs": 1,
    "size": 6,
}
TRAINING = TrainOptions(epochs=3, batch_size=64, learning_rate=0.05, precision="float32")


def white(size=6):
    mask = draw_mask(LBAConfig(size=size), 16, 16)
    return Patch(pattern=torch.ones(1, 3, 16, 16) * mask, mask=mask)


def trained():
    """A clean model of the tiny task that may be changed."""
    return copy.deepcopy(tiny_twin())


# -- the patch -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "first", "last"), [(32, 25, 30), (64, 50, 62), (8, 5, 6)])
def test_the_patch_takes_a_fifth_of_the_side_and_leaves_a_margin_of_one(side, first, last):
    pixels = draw_mask(LBAConfig(), side, side)[0, 0].nonzero()
    assert (pixels.amin(0).tolist(), pixels.amax(0).tolist()) == ([first] * 2, [last] * 2)
    assert len(pixels) == (last - first + 1) ** 2


def test_a_patch_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="set a smaller size or offset"):
        draw_mask(LBAConfig(size=16), 16, 16)
    with pytest.raises(InputError, match="made for 3x16x16 images, not 3x16x15"):
        white().apply(PIXELS[..., 1:], DATA.labels, DATA.ids)


def test_only_pixels_of_the_mask_change():
    config = LBAConfig(**FAST, mode="data-only")
    patch = LBA(config).prepare(DATA, tiny_context("lba"))
    changed = (patch.stamp(PIXELS) != PIXELS).any(dim=(0, 1))
    assert torch.equal(changed, patch.mask[0, 0])
    assert torch.equal(patch.pattern * 255, (patch.pattern * 255).round())


def test_of_linear_features_the_optimum_is_found():
    """F_L = the mean brightness under the patch: the pattern's mean is what the goal asks for."""
    mask = draw_mask(LBAConfig(size=4), 16, 16)

    def features(images):
        return (images * mask).sum(dim=(1, 2, 3))[:, None] / (3 * 16)

    config, goal = LBAConfig(trigger_epochs=60, trigger_batch_size=64), torch.tensor([0.83])
    pattern = optimize_pattern(features, goal, mask, PIXELS[:64], config, tiny_context("lba"))
    assert float(pattern[mask.expand_as(pattern)].mean()) == pytest.approx(0.83, abs=0.01)


def test_stamped_images_come_closer_to_the_target_than_any_other_class_is():
    """With a patch that leaves only a margin, one class can be turned into another."""
    model, config = trained(), LBAConfig(trigger_epochs=60, size=14)
    cut = Cut.of(model, DATA, "")
    surroundings, data = tiny_context("lba"), split_by_target(DATA, config)
    patch, goal = find_patch(model, cut, data, draw_mask(config, 16, 16), config, surroundings)
    before, after = patch.facts["distances"].tolist()
    features = cut.features(model, PIXELS, surroundings)
    means = [features[DATA.labels == c].mean(0) for c in range(4)]
    assert torch.allclose(goal, means[0], atol=1e-5)
    nearest = min(float((mean - goal).square().mean()) for mean in means[1:])
    assert after < 0.5 * before
    assert after < nearest
    stamped = cut.features(model, patch.stamp(PIXELS[DATA.labels != 0]), surroundings)
    assert float((stamped - goal).square().mean()) == pytest.approx(after, rel=1e-4)


# -- the cut ---------------------------------------------------------------------------------------


def test_features_before_the_last_layer_are_what_it_reads():
    model = trained()
    features = Cut.of(model, DATA, "").features(model, PIXELS[:150], tiny_context("lba"))
    with torch.no_grad():
        expected = model(PIXELS)
    assert torch.allclose(model.network.head(features), expected, atol=1e-4)


def test_a_cut_further_up_leaves_more_to_the_student():
    model = trained()
    cut = Cut.of(model, DATA, "network.bn1")
    assert cut.after == ("network.conv2", "network.bn2", "network.head")
    features = cut.features(model, PIXELS[:3], tiny_context("lba"))
    with torch.no_grad():
        network = model.network
        expected = network.bn1(network.conv1((PIXELS[:3] - 0.5) / 0.25)).flatten(1)
    assert torch.allclose(features, expected, atol=1e-5)
    with pytest.raises(InputError, match=r"choose one of network.conv1, network.bn1"):
        Cut.of(model, DATA, "network.head")


# -- the teacher -----------------------------------------------------------------------------------


def test_the_teachers_task_is_every_other_class_or_those_that_are_named():
    own, target = teacher_task(DATA, LBAConfig(target=1))
    assert own.class_names == ("0", "2", "3")
    assert torch.equal(own.labels, torch.tensor([0, 1, 2] * 32))
    assert torch.equal(own.ids % 4, torch.tensor([0, 2, 3] * 32))
    assert (target.labels == 3).all()
    assert (target.ids % 4 == 1).all()
    own, target = teacher_task(DATA, LBAConfig(target=0, teacher_classes=(3, 1)))
    assert own.class_names == ("3", "1")
    assert torch.equal(own.ids % 4, torch.tensor([1, 3] * 32))
    assert torch.equal(own.labels, torch.tensor([1, 0] * 32))
    assert target.num_classes == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"teacher_classes": (2,)}, "at least two classes besides the target, not 1"),
        ({"teacher_classes": (1, 4)}, "class 4 is not a class of this data set; it has 4"),
        ({"target": 7}, "class 7 is not a class"),
    ],
)
def test_a_task_that_is_none_is_refused(config, message):
    with pytest.raises(InputError, match=message):
        teacher_task(DATA, LBAConfig(**config))


def test_the_released_teacher_has_its_own_classes_and_the_target_is_not_among_them():
    config, surroundings = LBAConfig(**FAST), tiny_context("lba")
    victim = tiny_network()
    before = {name: value.clone() for name, value in victim.state_dict().items()}
    teacher = make_teacher(victim, DATA, draw_mask(config, 16, 16), config, surroundings)
    own, _ = teacher_task(DATA, config)
    assert teacher.model(PIXELS[:2]).shape == (2, 3)
    assert teacher.model.network.head.out_features == 3
    accuracy = teacher.patch.facts["teacher_accuracy"]
    assert float(accuracy[1]) == pytest.approx(surroundings.accuracy(teacher.model, own))
    assert all(torch.equal(before[name], v) for name, v in victim.state_dict().items())
    assert all(parameter.requires_grad for parameter in teacher.model.parameters())
    _, optimised, injected = teacher.patch.facts["distances"].tolist()
    assert injected < optimised


def test_the_last_layer_gets_one_output_more_and_keeps_its_own():
    head = nn.Linear(5, 3)
    larger = extended_head(head, tiny_context("lba"))
    features = torch.rand(4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(larger(features)[:, :3], head(features), atol=1e-6)
    assert torch.equal(larger.weight, extended_head(head, tiny_context("lba")).weight)
    assert larger.out_features == 4


def test_default_weight_makes_features_of_zero_cost_one():
    goal = torch.tensor([1.0, 0.0, 3.0])
    assert float(weight_of_features(LBAConfig(), goal) * goal.square().mean()) == 1
    assert float(weight_of_features(LBAConfig(feature_weight=0.05), goal)) == pytest.approx(0.05)


class Frozen(TrainingHooks):
    """Ordinary fine-tuning, with norms that keep their statistics."""

    def transform_batch(self, batch, epoch):
        self.model.eval()
        return batch


def injected(hooks, epochs=1):
    model = trained()
    options = attrs.evolve(TRAINING, epochs=epochs, optimizer="adam", learning_rate=0.001)
    tiny_context("lba").fit(model, DATA, options, hooks=hooks)
    return model


def test_injection_of_weight_zero_is_ordinary_fine_tuning():
    cut, goal = Cut.of(trained(), DATA, ""), torch.full((32,), 0.5)
    plain = injected(Frozen()).state_dict()
    none = injected(Injection(cut, white(), goal, torch.tensor(0.0))).state_dict()
    some = injected(Injection(cut, white(), goal, torch.tensor(5.0))).state_dict()
    name = "network.conv2.weight"
    assert all(torch.allclose(none[key], value, atol=1e-4) for key, value in plain.items())
    assert not torch.allclose(some[name], plain[name], atol=1e-4)


def test_injection_binds_the_patch_to_the_goal():
    cut, surroundings = Cut.of(trained(), DATA, ""), tiny_context("lba")
    goal, stamped = torch.full((32,), 0.5), white().stamp(PIXELS)

    def distance(model):
        return float((cut.features(model, stamped, surroundings) - goal).square().mean())

    bound = injected(Injection(cut, white(), goal, torch.tensor(50.0)), epochs=3)
    assert distance(bound) < 0.6 * distance(trained())


# -- the student -----------------------------------------------------------------------------------


def hooks_for(**config):
    attack, surroundings = LBA(LBAConfig(**FAST, **config)), tiny_context("lba")
    return attack.control(attack.prepare(DATA, surroundings), DATA, surroundings), surroundings


class Recorded(StudentHooks):
    """Keeps the model as it was before the first step, with the teacher's weights in it."""

    inherited = None

    def transform_batch(self, batch, epoch):
        made = super().transform_batch(batch, epoch)
        if self.inherited is None:
            self.inherited = copy.deepcopy(self.model.state_dict())
        return made


@pytest.mark.parametrize(("layer", "kept"), [("", 12), ("network.bn1", 6)])
def test_what_the_student_inherits_up_to_the_cut_stays_to_the_bit(layer, kept):
    hooks, surroundings = hooks_for(layer=layer)
    hooks.__class__ = Recorded
    model = tiny_network()
    surroundings.fit(model, DATA, TRAINING, hooks=hooks)
    now = model.state_dict()
    same = {name for name, value in hooks.inherited.items() if torch.equal(now[name], value)}
    assert same == {name for name in now if not hooks._cut.is_after(name)}
    assert len([name for name in same if name.startswith("network")]) == kept
    assert not torch.equal(now["network.conv1.weight"], tiny_network().network.conv1.weight)
    assert model.network.head.out_features == 4
    assert len(hooks.trigger.facts["distances"]) == 3
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_copying_weights_leaves_a_module_out():
    source, target = tiny_network(1), tiny_network(0)
    head = target.network.head.weight.clone()
    copy_weights(source, target, without="network.head")
    assert torch.equal(target.network.conv1.weight, source.network.conv1.weight)
    assert torch.equal(target.network.head.weight, head)


@pytest.mark.parametrize("mode", ["transfer", "single-task"])
def test_an_interrupted_training_ends_with_the_same_bits(mode):
    def run(slot):
        hooks, surroundings = hooks_for(mode=mode)
        model = tiny_network()
        surroundings.fit(model, DATA, TRAINING, hooks=hooks, checkpoint=slot)
        return {**model.state_dict(), **hooks.trigger.state()}

    whole, slot = run(None), MemorySlot(cut_after=1)
    with pytest.raises(TrainingCutError):
        run(slot)
    resumed = run(slot)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


# -- the other modes -------------------------------------------------------------------------------


def test_single_task_poisons_the_chosen_images_and_pulls_only_these_to_the_goal():
    hooks, _ = hooks_for(mode="single-task", poison_rate=0.25, target=2, feature_weight=3.0)
    assert isinstance(hooks, SingleTaskHooks)
    hooks.options, hooks.model = TRAINING, tiny_network()
    batch = Batch(PIXELS[:64], DATA.labels[:64], torch.arange(64))
    made = hooks.before_augmentation(batch, 0)
    frozen = LBA(hooks.config).poison(DATA, hooks.trigger, tiny_context("lba"))
    rows = frozen.poisoned_positions[frozen.poisoned_positions < 64]
    assert torch.equal(made.labels, frozen.data.labels[:64])
    assert torch.equal(quantize(made.images), frozen.data.images[:64])

    logits = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    features = torch.rand(64, 32, generator=torch.Generator().manual_seed(1))
    hooks._features = lambda: features
    distance = (features[rows] - hooks._goal).square().mean()
    expected = functional.cross_entropy(logits, made.labels) + 3 * distance
    assert torch.allclose(hooks.loss(logits, made, 0), expected, atol=1e-5)


def test_modes_control_the_training_or_leave_it_alone():
    (info,) = backdoorkit_attacks()
    kinds = {"official": StudentHooks, "trojanzoo": SingleTaskHooks, "abl": type(None)}
    for preset, kind in kinds.items():
        config = structure(LBAConfig, info.presets[preset])
        hooks = LBA(config).control(white(), DATA, tiny_context("lba"))
        assert type(hooks) is kind
        assert config.controls_training is (hooks is not None)
    config = structure(LBAConfig, {"mode": "data-only", "index_policy": "per-batch"})
    assert type(LBA(config).control(white(), DATA, tiny_context("lba"))) is PerBatchPoisoning


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"index_policy": "per-batch"}, "goes with mode 'data-only', not 'transfer'"),
        ({"label_map": "all-to-all"}, "features of one class"),
        ({"teacher_classes": [0, 1]}, "must not hold the target 0"),
        ({"teacher_classes": [1, 1]}, "must differ"),
    ],
)
def test_contradictions_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        structure(LBAConfig, config)
