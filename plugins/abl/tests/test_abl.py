"""ABL as a whole, on data whose trigger is easier than its classes."""

from __future__ import annotations

import functools

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from backdoorkit import Need, PoisonOptions
from backdoorkit.api import (
    DefenseTask,
    ImageSet,
    InputError,
    SampleKind,
    StructureError,
    find_structure,
    poison_by_options,
)
from backdoorkit.errors import ConfigError
from backdoorkit.hooks.options import structure
from backdoorkit.testing import PatchTrigger, tiny_context, tiny_network
from backdoorkit_abl import ABLConfig, backdoorkit_defenses
from backdoorkit_abl._defense import ABL

SHAPE = (3, 16, 16)
TRIGGER = PatchTrigger(6)


def images(count, seed):
    """Faint patterns of four classes under noise and changing colours."""
    coarse = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(99))
    patterns = functional.interpolate(coarse, size=SHAPE[1:], mode="bilinear")
    generator, labels = torch.Generator().manual_seed(seed), torch.arange(count) % 4
    noise = 0.15 * torch.randn(count, *SHAPE, generator=generator)
    colour = 0.2 * torch.randn(count, 3, 1, 1, generator=generator)
    made = (0.4 + 0.35 * (patterns[labels] - 0.5) + noise + colour).clamp(0, 1)
    return ImageSet.from_tensors((made * 255).round().to(torch.uint8), labels, num_classes=4)


@functools.cache
def poisoned():
    generator = torch.Generator().manual_seed(0)
    return poison_by_options(images(512, 10), TRIGGER, PoisonOptions(poison_rate=0.1), generator)


def defend(**options):
    config = ABLConfig(
        **{
            "turning_epoch": 6,
            "isolation_learning_rate": 0.05,
            "isolation_rate": 0.05,
            "batch_size": 32,
            "epochs": 6,
            "learning_rate": 0.05,
            "schedule": "cosine",
            "unlearning_learning_rate": 2e-3,
            "unlearning_batch_size": 16,
            "unlearning_epochs": 6,
            "precision": "float32",
            **options,
        }
    )
    task = DefenseTask(
        method="abl",
        num_classes=4,
        image_shape=SHAPE,
        resources={Need.TRAINING_DATA: poisoned().data, Need.TRAINING_CONTROL: tiny_network},
    )
    return ABL(config).run(task, tiny_context("abl"))


def rates(result):
    """Accuracy and attack success."""
    test, context = images(200, 4), tiny_context("test")
    triggered = TRIGGER.apply(test.images.float() / 255, test.labels, test.ids)
    predicted = result.model.eval()(triggered).argmax(dim=1)
    success = (predicted == 0)[test.labels != 0].float().mean().item()
    return context.accuracy(result.model, test), success


@functools.cache
def fine_tuned():
    return defend(unlearning="fine-tuning-all")


def test_mostly_poisoned_samples_are_isolated_and_told_with_their_ids():
    result = fine_tuned()
    isolated = result.tensors["isolated"]
    kinds = poisoned().kinds[isolated]
    assert len(isolated) == 25
    assert (kinds == SampleKind.POISONED).float().mean() > 0.8  # chance: 0.1
    assert torch.equal(result.tensors["isolated_ids"], poisoned().data.ids[isolated])
    assert result.tensors["losses"].shape == (512,)
    by_class = result.details["isolated_by_class"]
    assert by_class[0] > 20  # the target's; which others, depends on the processor
    assert sum(by_class) == 25
    assert result.details["isolated_loss"] < result.details["other_loss"]


def test_half_of_the_poison_is_enough_to_keep_the_backdoor_without_unlearning():
    accuracy, success = rates(fine_tuned())
    assert accuracy > 0.7
    assert success > 0.95


def test_sequential_ascent_takes_most_of_the_backdoor():
    result = defend()
    losses = result.details["unlearning_losses"]
    assert losses == sorted(losses)
    assert rates(result)[1] < 0.5


def test_joint_ascent_removes_the_backdoor_and_leaves_accuracy():
    accuracy, success = rates(defend(gga_form="joint"))
    assert success < 0.2
    assert accuracy > 0.5


def test_self_learning_removes_a_backdoor_of_which_most_was_isolated():
    accuracy, success = rates(defend(unlearning="self-learning", isolation_rate=0.1))
    assert success < 0.4
    assert accuracy > 0.7


SHORT = {"turning_epoch": 1, "epochs": 1, "helper_epochs": 1, "batch_size": 128}


@pytest.mark.parametrize(
    "variant",
    [
        "pixel-noise",
        "grad-noise",
        "label-shuffling",
        "label-uniform",
        "label-smoothing",
        "self-learning",
        "fine-tuning-last",
        "retraining",
    ],
)
def test_every_variant_starts_from_the_same_isolation_and_goes_its_own_way(variant):
    result = defend(unlearning=variant, **SHORT)
    plain = defend(unlearning="fine-tuning-all", **SHORT)
    assert torch.equal(result.tensors["isolated"], plain.tensors["isolated"])
    assert result.details["unlearning"] == variant
    own, other = result.model.state_dict(), plain.model.state_dict()
    assert own.keys() == other.keys()
    assert not torch.equal(own["network.head.weight"], other["network.head.weight"])


def test_retraining_and_pretrained_models_owe_nothing_to_stage_one(tmp_path):
    path = tmp_path / "imagenet.safetensors"
    save_file(dict(tiny_network(5).network.state_dict()), path)
    still = {**SHORT, "epochs": 0}
    retrained = defend(unlearning="retraining", **still).model.network.conv1.weight
    assert torch.equal(retrained, tiny_network().network.conv1.weight)
    options = {"unlearning": "fine-tuning-imagenet", "imagenet_weights": path}
    pretrained = defend(**options, **still).model.network
    assert torch.equal(pretrained.conv1.weight, tiny_network(5).network.conv1.weight)
    assert torch.equal(pretrained.head.weight, tiny_network().network.head.weight)


def test_reset_last_layers_start_from_initial_weights():
    options = {"unlearning": "fine-tuning-last", **SHORT, "epochs": 0}
    initial = tiny_network().network.head.weight
    kept, reset = (
        defend(**options, reset_last_layers=flag).model.network.head.weight
        for flag in (False, True)
    )
    assert torch.equal(reset, initial)
    assert not torch.equal(kept, initial)


# -- refusals and options --------------------------------------------------------------------------


def test_imagenet_weights_are_asked_for_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match="none is downloaded"):
        structure(ABLConfig, {"unlearning": "fine-tuning-imagenet"})
    config = structure(
        ABLConfig,
        {
            "unlearning": "fine-tuning-imagenet",
            "imagenet_weights": str(tmp_path / "none.safetensors"),
        },
    )
    with pytest.raises(InputError, match="does not exist"):
        ABL(config).check(tiny_context("abl").structure(tiny_network()))


class TwoHeads(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = torch.nn.Linear(768, 4), torch.nn.Linear(768, 4)

    def forward(self, images):
        return self.one(images.flatten(1)) + self.other(images.flatten(1))


def test_the_last_layers_need_a_head_and_the_rest_does_not():
    found = find_structure(TwoHeads(), SHAPE)
    ABL(ABLConfig()).check(found)
    with pytest.raises(StructureError, match="fine-tuning-last"):
        ABL(ABLConfig(unlearning="fine-tuning-last")).check(found)


def test_it_asks_for_training_alone_and_presets_are_valid():
    (info,) = backdoorkit_defenses()
    assert info.needs == {Need.TRAINING_DATA, Need.TRAINING_CONTROL}
    configs = {name: structure(ABLConfig, values) for name, values in info.presets.items()}
    paper, official = configs["paper"], configs["official"]
    assert paper.turning_epoch + paper.epochs + paper.unlearning_epochs == 100
    assert (official.turning_epoch, official.unlearning_epochs, official.loss_cap) == (10, 4, 0)
    assert configs["backdoorbench"].isolation_learning_rate == 0.01
