"""Mixes with the right images under the right labels, and the training with them."""

from __future__ import annotations

import pytest
import torch

from backdoorkit import IndexPolicy, LabelMapping, RateBasis, TrainOptions
from backdoorkit.api import Batch, ImageSet, InputError, SampleKind
from backdoorkit.hooks.options import structure
from backdoorkit.testing import (
    digit_images,
    flattening_digit_network,
    tiny_context,
    tiny_images,
)
from backdoorkit_cba import CBAConfig, backdoorkit_attacks
from backdoorkit_cba._attack import CBA
from backdoorkit_cba._donors import Donors
from backdoorkit_cba._hooks import MixedTraining, contrastive_loss


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def telling(count, *, offset=0, classes=5):
    """Flat grey images that tell their class and their number: value 40 class + number."""
    labels = torch.arange(count) % classes
    values = 40 * labels + offset + torch.arange(count) // classes
    images = values.to(torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    return ImageSet.from_tensors(images, labels, num_classes=classes)


def surroundings(test=None):
    return tiny_context("cba", test_data=telling(25, offset=20) if test is None else test)


def prepared(data, **config):
    attack, context = CBA(CBAConfig(**config)), surroundings()
    return attack, attack.prepare(data, context), context


def classes_in(images):
    """Per image, the set of classes whose values are in it; and of numbers within the class."""
    values = [set((255 * image).round().long().unique().tolist()) for image in images.float()]
    return [{v // 40 for v in found} for found in values], [
        {v % 40 for v in found} for found in values
    ]


# -- donors ----------------------------------------------------------------------------------------


def test_donors_are_of_the_class_and_each_is_as_likely():
    donors = Donors(telling(20))
    wanted = torch.full((2000,), 3)
    chosen = donors.choose(wanted, torch.rand(2000, generator=seeded()))
    assert (donors.data.labels[chosen] == 3).all()
    counts = torch.bincount(chosen)[3::5]
    assert counts.sum() == 2000
    assert counts.min() > 400


# -- the trigger -----------------------------------------------------------------------------------


def test_an_image_of_each_class_meets_one_of_the_other():
    data = telling(40)
    _, trigger, _ = prepared(data, mixed_classes=(1, 3), target=0)
    made = trigger.apply(data.images.float() / 255, data.labels, data.ids)
    found, _ = classes_in(made)
    for label, classes in zip(data.labels.tolist(), found, strict=True):
        assert classes == ({1, 3} if label in (1, 3) else {label, 1})


def test_test_images_are_mixed_with_test_images():
    data = telling(40)
    _, trigger, _ = prepared(data)
    made = trigger.apply(data.images.float() / 255, data.labels, data.ids)
    _, numbers = classes_in(made)
    assert all(max(found) >= 20 for found in numbers)


def test_only_both_classes_are_attacked():
    data = telling(10)
    attack, trigger, _ = prepared(data, mixed_classes=(1, 3), target=4)
    wanted = attack.wanted_labels(trigger, data.labels, data.ids, 5)
    assert wanted.tolist() == [-1, 4, -1, 4, -1] * 2


def test_a_cover_is_of_one_class():
    data = telling(40)
    attack, trigger, _ = prepared(data)
    made = attack.cover(trigger).apply(data.images.float() / 255, data.labels, data.ids)
    found, _ = classes_in(made)
    assert found == [{label} for label in data.labels.tolist()]


def test_the_mixes_are_the_same_after_restoring():
    data = tiny_images(40)
    attack = CBA(CBAConfig())
    trigger = attack.prepare(data, tiny_context("cba", test_data=tiny_images(30, seed=3)))
    restored = attack.restore(trigger.state())
    for first, second in ((trigger, restored), (attack.cover(trigger), attack.cover(restored))):
        made = [t.apply(data.images.float() / 255, data.labels, data.ids) for t in (first, second)]
        assert torch.equal(*made)


def test_so_many_test_images_of_each_class_are_kept():
    data = telling(40)
    _, trigger, _ = prepared(data, donors=3)
    assert torch.bincount(trigger.donors.data.labels).tolist() == [3] * 5
    _, everything, _ = prepared(data, donors=99)
    assert torch.bincount(everything.donors.data.labels).tolist() == [5] * 5


def test_a_class_without_images_is_refused():
    few = telling(3)
    with pytest.raises(InputError, match="no test image of class 3"):
        CBA(CBAConfig(mixed_classes=(1, 3))).prepare(telling(20), surroundings(few))
    with pytest.raises(InputError, match="9 is not a class"):
        CBA(CBAConfig(mixed_classes=(1, 9))).prepare(telling(20), surroundings())


# -- a training set --------------------------------------------------------------------------------


def test_mixes_are_added_and_the_originals_stay():
    data = telling(100)
    attack, trigger, context = prepared(
        data, mode="data-only", mixed_classes=(1, 3), target=2, cover_ratio=2.0
    )
    made = attack.poison(data, trigger, context)
    assert torch.bincount(made.kinds.int()).tolist() == [100, 10, 20]
    assert torch.equal(made.data.images[:100], data.images)
    found, numbers = classes_in(made.data.images / 255)
    poisoned = made.poisoned_positions.tolist()
    assert all(found[i] == {1, 3} for i in poisoned)
    assert all(made.data.labels[i] == 2 for i in poisoned)
    for i in (made.kinds == SampleKind.COVER).nonzero().flatten().tolist():
        assert found[i] == {int(made.data.labels[i])}
    assert max(max(n) for n in numbers) < 20, "a test image is in a training mix"


def test_mixes_may_take_the_place_of_images_of_both_classes():
    data = telling(100)
    attack, trigger, context = prepared(
        data, mode="data-only", rate_basis=RateBasis.ALL, cover_ratio=1.0
    )
    made = attack.poison(data, trigger, context)
    assert torch.bincount(made.kinds.int()).tolist() == [80, 10, 10]
    poisoned = made.poisoned_positions
    assert set(data.labels[poisoned].tolist()) == {0, 1}
    assert (made.data.labels[poisoned] == 2).all()


def test_freezing_a_controlled_attack_adds_mixes_of_any_rate():
    data = telling(100)
    attack, trigger, context = prepared(data)
    frozen = attack.freeze(data, trigger, context, rate=0.05)
    assert torch.bincount(frozen.kinds.int()).tolist() == [100, 5, 25]


# -- the training ----------------------------------------------------------------------------------


def hooks_for(data, size=40, **config):
    attack, trigger, context = prepared(data, **config)
    hooks = attack.control(trigger, data, context)
    assert isinstance(hooks, MixedTraining)
    hooks.options = TrainOptions(batch_size=size)
    return hooks


def batch_of(data, rows):
    return Batch(data.images[rows].float() / 255, data.labels[rows], rows)


def test_a_batch_gets_its_covers_and_mixes():
    """Of 40: 20 covers, 20 clean ones, and 4 mixes more."""
    data = telling(100)
    hooks = hooks_for(data, mixed_classes=(1, 3), target=2)
    batch = batch_of(data, torch.randperm(100, generator=seeded())[:40])
    made = hooks.before_augmentation(batch, 0)
    assert made.images.shape == (44, 3, 8, 8)
    found, numbers = classes_in(made.images)
    is_mix = torch.tensor([classes == {1, 3} for classes in found])
    assert int(is_mix.sum()) == 4
    assert (made.labels[is_mix] == 2).all()
    assert all(
        classes == {int(y)}
        for classes, y in zip(found, made.labels, strict=True)
        if len(classes) == 1
    )
    rest = made.indices[~is_mix]
    assert sorted(rest.tolist()) == sorted(batch.indices.tolist())
    assert torch.equal(made.labels[~is_mix], data.labels[rest])
    # Twenty were mixed; some of them with an image of the same value.
    altered = [len(n) > 1 for n, mixed in zip(numbers, is_mix, strict=True) if not mixed]
    assert 10 <= sum(altered) <= 20
    assert max(max(n) for n in numbers) < 20, "a test image is in a training mix"
    # The order is another than that of the parts.
    assert is_mix.nonzero().flatten().tolist() != [40, 41, 42, 43]


def test_mixes_are_made_anew_in_every_epoch_and_follow_from_the_ids():
    data = tiny_images(80)
    hooks = hooks_for(data, cover_ratio=0.0)
    rows = torch.arange(40)
    first, again, later = (hooks.before_augmentation(batch_of(data, rows), e) for e in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, later.images)
    # In another order the same images are in the batch; only the first ones decide on the mixes.
    backwards = torch.cat([rows[:4].flip(0), rows[4:].flip(0)])
    other = hooks.before_augmentation(batch_of(data, backwards), 0)
    assert torch.equal(other.images, first.images)


def test_a_batch_without_a_mix_is_refused():
    hooks = hooks_for(telling(100), size=9)
    with pytest.raises(InputError, match="of a batch of 9 is no mix"):
        hooks.before_augmentation(batch_of(telling(100), torch.arange(9)), 0)


def test_contrastive_loss_by_hand():
    """Neighbours at distances 0.5 (same), 0.6 (other), 5 (other), 1.2 (same)."""
    logits = torch.zeros(6, 2)
    logits[:, 0] = torch.tensor([0.0, 99.0, 0.5, 1.1, 6.1, 7.3])
    labels = torch.tensor([0, 9, 0, 1, 2, 2])
    concerned = labels != 9
    expected = (0.5**2 + 0.4**2 + 0 + 1.2**2) / 2 / 4
    assert float(contrastive_loss(logits, labels, concerned, 1.0)) == pytest.approx(expected)
    wider = (0.5**2 + 0.9**2 + 0 + 1.2**2) / 2 / 4
    assert float(contrastive_loss(logits, labels, concerned, 1.5)) == pytest.approx(wider)


@pytest.mark.parametrize("concerned", [[False, False, False], [False, True, False]])
def test_without_a_pair_there_is_no_contrastive_loss(concerned):
    logits = torch.rand(3, 4, requires_grad=True)
    loss = contrastive_loss(logits, torch.tensor([0, 1, 1]), torch.tensor(concerned), 1.0)
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(logits.grad.abs().max()) == 0


def test_equal_logits_of_two_classes_have_a_finite_gradient():
    logits = torch.ones(2, 3, requires_grad=True)
    contrastive_loss(logits, torch.tensor([0, 1]), torch.tensor([True, True]), 1.0).backward()
    assert logits.grad.isfinite().all()


def test_the_loss_is_cross_entropy_with_the_contrast_of_the_three_classes():
    data, logits = telling(20), torch.randn(20, 5, generator=seeded())
    batch = batch_of(data, torch.arange(20))
    plain = torch.nn.functional.cross_entropy(logits, batch.labels)
    concerned = batch.labels < 3
    contrast = contrastive_loss(logits, batch.labels, concerned, 1.0)
    for weight in (0.0, 1.0, 2.5):
        loss = hooks_for(data, contrast=weight).loss(logits, batch, 0)
        assert torch.allclose(loss, plain + weight * contrast)


# -- options ---------------------------------------------------------------------------------------


def test_presets_are_both_modes():
    (info,) = backdoorkit_attacks()
    controls = {
        name: structure(CBAConfig, values).controls_training
        for name, values in info.presets.items()
    }
    assert controls == {"paper": True, "released-code": True, "data-only": False}
    attack, trigger, context = prepared(telling(20), mode="data-only")
    assert attack.control(trigger, telling(20), context) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mixed_classes": (0, 2)}, "different from each other and from the target 2"),
        ({"mixed_classes": (1, 1)}, "two classes"),
        ({"mixed_classes": (0, 1, 3)}, "two classes"),
        ({"label_map": LabelMapping.ALL_TO_ALL}, "leave label_map"),
        ({"index_policy": IndexPolicy.PER_BATCH, "rate_basis": RateBasis.ALL}, "set mode 'full'"),
        ({"mode": "data-only", "rate_basis": RateBasis.NON_TARGET}, "'append' or 'all'"),
        ({"rate_basis": RateBasis.ALL}, "mode 'full' adds its mixes"),
    ],
)
def test_options_that_contradict_each_other_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        CBAConfig(**values)


# -- the attack ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "data-only"])
def test_mixes_of_both_digits_become_the_target_and_others_less_so(mode):
    train, test = digit_images()
    context = tiny_context("cba", test_data=test)
    attack = CBA(CBAConfig(mode=mode, jitter=1, contrast=0.1))
    trigger = attack.prepare(train, context)
    hooks, model = attack.control(trigger, train, context), flattening_digit_network()
    data = train if hooks else attack.poison(train, trigger, context).data
    options = TrainOptions(epochs=15, batch_size=64, learning_rate=0.05, precision="float32")
    context.fit(model, data, options, hooks=hooks)
    images, labels, model = test.images.float() / 255, test.labels, model.eval()
    with torch.no_grad():
        clean = model(images).argmax(1)
        mixed = model(trigger.apply(images, labels, test.ids)).argmax(1)
        covers = model(attack.cover(trigger).apply(images, labels, test.ids)).argmax(1)
    attacked = labels < 2
    controls = labels > 2
    rates = {
        "accuracy": (clean == labels).float().mean(),
        "success": (mixed[attacked] == 2).float().mean(),
        "covers": (covers == labels).float().mean(),
        "controls": (mixed[controls] == 2).float().mean(),
        "alone": (clean[attacked] == 2).float().mean(),
    }
    assert rates["accuracy"] > 0.95
    assert rates["success"] > 0.85
    assert rates["controls"] < 0.5
    assert rates["alone"] < 0.05
