"""Loss curves: what is told of known losses, and that backdoored samples are learned first."""

from __future__ import annotations

import functools

import attrs
import pytest
import torch

from backdoorkit import PoisonOptions
from backdoorkit.api import ContractError, InputError, SampleKind, poison_by_options, quantize
from backdoorkit.pipeline import envelope
from backdoorkit.testing import PatchTrigger, tiny_context, tiny_images, tiny_victim
from backdoorkit_abl import LossCurvesConfig, backdoorkit_analyses
from backdoorkit_abl._loss_curves import LossCurves, look

CLEAN, POISONED, COVER = (int(kind) for kind in SampleKind)


def kinds(*values):
    return torch.tensor(values, dtype=torch.uint8)


def hard_images(count):
    """Classes that are harder to learn than a patch: faint patterns under noise."""
    data = tiny_images(count, seed=10)
    noise = torch.randn(data.images.shape, generator=torch.Generator().manual_seed(1))
    faint = 0.5 + 0.3 * (data.images / 255 - 0.5) + 0.15 * noise
    return data.replaced(torch.arange(count), quantize(faint), data.labels)


@functools.cache
def poisoned():
    generator = torch.Generator().manual_seed(0)
    options = PoisonOptions(poison_rate=0.1)
    return poison_by_options(hard_images(512), PatchTrigger(6), options, generator)


def analyse(**options):
    config = LossCurvesConfig(
        **{"batch_size": 32, "isolation_rate": 0.05, "precision": "float32", **options}
    )
    (info,) = backdoorkit_analyses()
    victim = tiny_victim()
    resources = victim.resources()
    resources.training_data = lambda: poisoned().data
    truth = attrs.evolve(victim.truth(), kinds=lambda: poisoned().kinds)
    context = tiny_context("loss-curves")
    return envelope.run_analysis(LossCurves(config), info, resources, truth, context)


def test_groups_are_described_by_mean_and_quartiles():
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0, 0.5, 0.7], dtype=torch.float64)
    told = look(losses, kinds(0, 0, 0, 0, 0, 1, 1), 2)
    assert told.groups["clean"] == (4.0, 2.0, 3.0, 4.0)
    assert told.groups["backdoored"] == pytest.approx((0.6, 0.55, 0.6, 0.65))
    assert set(told.groups) == {"clean", "backdoored"}
    assert (told.auroc, told.precision) == (1.0, 1.0)


def test_order_decides_area_and_precision():
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    told = look(losses, kinds(1, 0, 1, 0), 2)
    assert told.auroc == 0.75  # of four pairs, three are in order
    assert told.precision == 0.5


def test_covers_are_a_group_of_their_own_and_not_backdoored():
    losses = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    told = look(losses, kinds(COVER, POISONED, CLEAN), 1)
    assert told.groups["cover"][0] == 1.0
    assert (told.auroc, told.precision) == (0.5, 0.0)


def test_without_poison_nothing_can_be_told_apart():
    told = look(torch.tensor([1.0, 2.0], dtype=torch.float64), kinds(CLEAN, CLEAN), 1)
    assert (told.auroc, told.precision) == (None, None)


def test_backdoored_samples_have_the_lower_loss_after_every_epoch():
    result = analyse(epochs=4, learning_rate=0.02)
    epochs = result.details["epochs"]
    assert len(epochs) == 4
    for epoch in epochs:
        assert epoch["groups"]["backdoored"][0] < epoch["groups"]["clean"][0]
    assert result.values["last AUROC"] == epochs[-1]["auroc"]
    assert result.values["best AUROC"] == max(epoch["auroc"] for epoch in epochs) > 0.8
    assert result.details["samples"] == {"clean": 461, "backdoored": 51, "cover": 0}


def test_kept_losses_are_those_of_the_last_epoch():
    result = analyse(epochs=2, learning_rate=0.02)
    losses, of = result.tensors["losses"], result.tensors["kinds"]
    assert losses.shape == (512,)
    assert float(losses[of == CLEAN].mean()) == result.values["clean loss"]
    assert float(losses[of == POISONED].mean()) == result.values["backdoored loss"]


def test_gradient_ascent_keeps_clean_losses_up():
    plain = analyse(epochs=8, learning_rate=0.05).values
    held = analyse(epochs=8, learning_rate=0.05, isolation_loss="lga").values
    assert plain["clean loss"] < 0.25 < 0.35 < held["clean loss"]


def test_a_share_of_less_than_one_sample_is_refused():
    with pytest.raises(InputError, match="isolation_rate"):
        analyse(epochs=1, isolation_rate=0.001)


def test_a_record_of_another_training_set_is_refused():
    (info,) = backdoorkit_analyses()
    victim = tiny_victim()
    truth = attrs.evolve(victim.truth(), kinds=lambda: kinds(0, 1))
    with pytest.raises(ContractError, match="512 training samples, got 2"):
        envelope.run_analysis(
            LossCurves(LossCurvesConfig()), info, victim.resources(), truth, tiny_context("x")
        )
