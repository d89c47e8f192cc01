"""Fine-tuning: what is trained, what stays, and what is refused."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from backdoorkit import Need
from backdoorkit.api import DefenseTask, ImageSet, InputError, StructureError
from backdoorkit.hooks.options import structure
from backdoorkit.testing import tiny_context, tiny_images, tiny_network
from backdoorkit_ft import FineTuningConfig, backdoorkit_defenses
from backdoorkit_ft._defense import FineTuning

SHAPE = (3, 16, 16)


class Staged(nn.Module):
    """Three resolutions, a final norm and a head, all registered in order."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, stride=2), nn.ReLU())
        self.layer3 = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1, stride=2), nn.ReLU())
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        features = self.layer3(self.layer2(self.layer1(self.stem(images))))
        return self.head(self.norm(features).mean(dim=(2, 3)))


def tune(model, clean=None, **options):
    options = {"epochs": 1, "batch_size": 16, "precision": "float32", **options}
    task = DefenseTask(
        method="ft",
        num_classes=4,
        image_shape=SHAPE,
        resources={
            Need.WEIGHTS: model.eval(),
            Need.CLEAN_SAMPLES: tiny_images(32) if clean is None else clean,
        },
    )
    defense = FineTuning(FineTuningConfig(**options))
    context = tiny_context("ft")
    defense.check(context.structure(model))
    return defense.run(task, context)


def changed(model, **options):
    """Names of the parameters that fine-tuning changes."""
    before = copy.deepcopy(model.state_dict())
    after = tune(model, **options).model
    return {
        name
        for name, parameter in after.named_parameters()
        if not torch.equal(parameter, before[name])
    }


def below(model, *modules):
    return {name for name, _ in model.named_parameters() if name.startswith(modules)}


def test_without_a_learning_rate_the_parameters_stay_bit_for_bit():
    assert changed(tiny_network(), learning_rate=0.0, epochs=2) == set()


def test_frozen_statistics_and_no_learning_rate_change_nothing_at_all():
    model = tiny_network()
    before = copy.deepcopy(model.state_dict())
    after = tune(model, learning_rate=0.0, freeze_norm_statistics=True).model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_statistics_move_unless_they_are_frozen():
    model = tiny_network()
    before = model.network.bn1.running_mean.clone()
    assert not torch.equal(tune(model, learning_rate=0.0).model.network.bn1.running_mean, before)


def test_frozen_statistics_are_what_the_loss_is_computed_with():
    model = tiny_network()
    twin = copy.deepcopy(model)
    clean = tiny_images(16)
    tune(
        model, clean, learning_rate=0.5, momentum=0.0, weight_decay=0.0, freeze_norm_statistics=True
    )
    images = clean.images.float() / 255
    nn.functional.cross_entropy(twin.eval()(images), clean.labels).backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - 0.5 * theirs.grad, rtol=1e-4, atol=1e-5)


def test_where_the_loss_is_at_its_minimum_it_does_not_rise():
    # Two images of each class, which are the same for both: no model does better than one half.
    data = tiny_images(2)
    images = torch.cat([data.images, data.images])
    clean = ImageSet.from_tensors(images, torch.tensor([0, 1, 1, 0]), num_classes=4)

    class Undecided(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 4)
            nn.init.zeros_(self.head.weight)
            with torch.no_grad():  # classes that are never right have no chance
                self.head.bias.copy_(torch.tensor([0.0, 0.0, -100.0, -100.0]))

        def forward(self, images):
            return self.head(images.mean(dim=(2, 3)))

    model = Undecided()
    before = copy.deepcopy(model.state_dict())
    tune(model, clean, epochs=5, learning_rate=1.0, batch_size=4, weight_decay=0.0)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=1e-6, rtol=0)


def test_everything_is_trained_by_default():
    model = Staged()
    assert changed(model) == {name for name, _ in model.named_parameters()}


def test_scope_head_trains_the_head_alone():
    assert changed(tiny_network(), scope="head") == {"network.head.weight", "network.head.bias"}


def test_scope_norm_trains_scales_and_shifts_alone():
    names = {f"network.{norm}.{part}" for norm in ("bn1", "bn2") for part in ("weight", "bias")}
    assert changed(tiny_network(), scope="norm") == names


@pytest.mark.parametrize(
    ("count", "trained"),
    [(1, ("layer3", "norm", "head")), (2, ("layer2", "layer3", "norm", "head"))],
)
def test_scope_last_stages_trains_them_and_all_that_follows(count, trained):
    model = Staged()
    assert changed(model, scope="last-stages", last_stages=count) == below(model, *trained)


def test_more_stages_than_there_are_refused_before_anything_runs():
    with pytest.raises(StructureError, match="last-stages"):
        tune(Staged(), scope="last-stages", last_stages=3)


def test_scope_norm_without_norms_is_refused():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4, 4)

        def forward(self, images):
            return self.head(self.conv(images).mean(dim=(2, 3)))

    with pytest.raises(StructureError, match="ft --scope norm"):
        tune(Plain(), scope="norm")


def test_an_empty_reserve_is_refused():
    empty = ImageSet.from_tensors(
        torch.zeros(0, *SHAPE, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), num_classes=4
    )
    with pytest.raises(InputError, match="empty"):
        tune(tiny_network(), empty)


def test_the_cosine_spans_the_epochs_it_is_given(monkeypatch):
    rates = []
    step = torch.optim.SGD.step

    def spy(optimizer, *args, **kwargs):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    tune(tiny_network(), epochs=10, learning_rate=1.0, batch_size=32)
    assert rates == pytest.approx([0.5 * (1 + math.cos(math.pi * e / 10)) for e in range(10)])


def test_presets_are_valid_configurations():
    [info] = backdoorkit_defenses()
    assert set(info.presets) == {"backdoorbench", "nad-teacher", "sharpness-aware"}
    for preset in info.presets.values():
        structure(info.config, preset)
    assert structure(info.config, info.presets["nad-teacher"]).milestones == (0.2,)
    assert structure(info.config, info.presets["sharpness-aware"]).sharpness_radius == 0.05


# -- sharpness-aware -------------------------------------------------------------------------------


def test_a_radius_of_zero_is_plain_fine_tuning_bit_for_bit():
    plain, options = tiny_network(), FineTuningConfig(epochs=2, batch_size=16, precision="float32")
    tiny_context("ft").fit(plain, tiny_images(32), options)
    tuned = tune(tiny_network(), epochs=2, sharpness_radius=0.0).model.state_dict()
    assert all(torch.equal(value, tuned[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("frozen", [False, True])
def test_a_step_starts_at_the_weights_and_follows_the_gradient_uphill_of_them(frozen):
    model, clean = tiny_network(), tiny_images(16)
    images, twin = clean.images.float() / 255, copy.deepcopy(model).train()
    if frozen:
        twin.eval()

    def gradient():
        loss = nn.functional.cross_entropy(twin(images), clean.labels)
        return torch.autograd.grad(loss, list(twin.parameters()))

    weights, first = copy.deepcopy(list(twin.parameters())), gradient()
    length = torch.stack([part.norm() for part in first]).norm()
    with torch.no_grad():
        for parameter, part in zip(twin.parameters(), first, strict=True):
            parameter.add_(0.2 * part / length)
    expected = [w - 0.5 * g for w, g in zip(weights, gradient(), strict=True)]

    options = {"learning_rate": 0.5, "momentum": 0.0, "weight_decay": 0.0, "sharpness_radius": 0.2}
    tune(model, clean, freeze_norm_statistics=frozen, **options)
    torch.testing.assert_close(list(model.parameters()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_statistics_follow_each_batch_once_or_not_at_all(frozen):
    model = tiny_network()
    options = {"learning_rate": 0.0, "freeze_norm_statistics": frozen}
    plain = tune(copy.deepcopy(model), **options).model.state_dict()
    sharp = tune(model, sharpness_radius=0.5, **options).model.state_dict()
    assert int(sharp["network.bn1.num_batches_tracked"]) == (0 if frozen else 2)
    assert all(torch.equal(value, sharp[name]) for name, value in plain.items())


def test_only_what_is_in_scope_is_moved_uphill():
    model = tiny_network()
    assert changed(model, scope="head", sharpness_radius=0.1) == {
        "network.head.weight",
        "network.head.bias",
    }
