"""Label maps, covers, appended copies, and poisoning batch by batch."""

from __future__ import annotations

import attrs
import pytest
import torch

from backdoorkit import IndexPolicy, LabelMapping, PoisonOptions, RateBasis
from backdoorkit.api import Attack, PerBatchPoisoning, Trigger
from backdoorkit.context import Context
from backdoorkit.data.batches import Batch
from backdoorkit.data.choosing import (
    check_options,
    choose_in_batch,
    choose_positions,
    map_labels,
)
from backdoorkit.data.images import ImageSet
from backdoorkit.data.poison import SampleKind, poison_by_options
from backdoorkit.errors import ConfigError, InputError
from backdoorkit.hooks.options import structure
from backdoorkit.hooks.shared_options import TrainOptions
from backdoorkit.testing import tiny_network


class Inverting(Trigger):
    def apply(self, images, labels, indices):
        return 1 - images

    def state(self):
        return {}


class Blackening(Inverting):
    def apply(self, images, labels, indices):
        return images * 0


@attrs.frozen(kw_only=True)
class OwnCovers(PoisonOptions):
    own_covers = True


class Toy(Attack):
    def prepare(self, data, context):
        return Inverting()

    def restore(self, state):
        return Inverting()

    def cover(self, trigger, epoch=None):
        return Blackening() if self.config.own_covers else None


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=200, classes=4, size=6):
    pixels = torch.randint(1, 255, (count, 1, size, size), generator=seeded(3)).to(torch.uint8)
    return ImageSet.from_tensors(pixels, torch.arange(count) % classes, num_classes=classes)


SPECIFIC = {"label_map": LabelMapping.SOURCE_SPECIFIC, "source_classes": (1, 2), "target": 0}


def poisoned(data, options, cover=None):
    return poison_by_options(data, Inverting(), options, seeded(), cover=cover)


# -- source-specific -------------------------------------------------------------------------------


def test_only_source_classes_are_wanted_elsewhere():
    wanted = map_labels(torch.tensor([0, 1, 2, 3]), PoisonOptions(**SPECIFIC), 4)
    assert wanted.tolist() == [-1, 0, 0, -1]


@pytest.mark.parametrize(("basis", "count"), [("all", 20), ("source-classes", 10)])
def test_only_source_classes_are_poisoned(basis, count):
    data = images()
    options = PoisonOptions(**SPECIFIC, rate_basis=RateBasis(basis))
    where = poisoned(data, options).poisoned_positions
    assert len(where) == count
    assert set(data.labels[where].tolist()) == {1, 2}


def test_covers_are_triggered_images_of_the_other_classes_with_their_label():
    data = images()
    made = poisoned(data, PoisonOptions(**SPECIFIC, cover_ratio=1.5))
    covers = (made.kinds == SampleKind.COVER).nonzero().flatten()
    assert len(covers) == 30
    assert set(data.labels[covers].tolist()) == {0, 3}
    assert torch.equal(made.data.labels[covers], data.labels[covers])
    assert torch.equal(made.data.images[covers], 255 - data.images[covers])


def test_covers_leave_the_choice_of_the_poisoned_alone():
    data = images()
    plain, covered = (
        poisoned(data, PoisonOptions(**SPECIFIC, cover_ratio=ratio)) for ratio in (0.0, 2.0)
    )
    assert torch.equal(plain.poisoned_positions, covered.poisoned_positions)


def test_more_than_the_source_classes_hold_is_refused_with_the_counts():
    options = PoisonOptions(**SPECIFIC, poison_rate=0.6)
    with pytest.raises(
        InputError, match="wants 120 samples of the source classes and there are 100; lower"
    ):
        check_options(images().labels, options, 4)


def test_more_covers_than_there_are_others_is_refused_with_the_counts():
    options = PoisonOptions(**SPECIFIC, cover_ratio=6)
    with pytest.raises(InputError, match="wants 120 covers for 20 poisoned samples and 100 may"):
        poisoned(images(), options)


def test_a_source_class_that_is_none_is_refused():
    options = PoisonOptions(label_map=LabelMapping.SOURCE_SPECIFIC, source_classes=(7,))
    with pytest.raises(InputError, match=r"source class 7 is not a class .* it has 4"):
        choose_positions(images().labels, options, 4, seeded())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"label_map": "source-specific"}, "needs source_classes"),
        ({"source_classes": [1]}, "go with label_map 'source-specific'"),
        (
            {"label_map": "source-specific", "source_classes": [0, 1]},
            "must not hold the target 0",
        ),
        ({"label_map": "source-specific", "source_classes": [1, 1]}, "must differ"),
        ({"rate_basis": "source-classes"}, "goes with label_map 'source-specific'"),
        (
            {
                "label_map": "source-specific",
                "source_classes": [1],
                "rate_basis": "target-class",
            },
            "which is no source class",
        ),
        ({"cover_ratio": 1.0}, "would undo this attack"),
        ({"rate_basis": "append", "index_policy": "per-batch"}, "makes a training set"),
    ],
)
def test_contradictions_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        structure(PoisonOptions, values)


# -- covers of an attack's own sort, appended copies -----------------------------------------------


def test_own_covers_are_what_the_attack_makes_of_any_class():
    data = images()
    made = poisoned(data, OwnCovers(cover_ratio=2.0), Blackening())
    covers = made.kinds == SampleKind.COVER
    assert int(covers.sum()) == 40
    assert int(made.data.images[covers].sum()) == 0
    assert torch.equal(made.data.labels[covers], data.labels[covers])
    assert len(made.poisoned_positions) == 20


def test_appended_copies_leave_their_originals_in_the_set():
    data = images()
    made = poisoned(data, PoisonOptions(rate_basis=RateBasis.APPEND, target=3))
    assert len(made.data) == 220
    assert torch.equal(made.data.images[:200], data.images)
    assert torch.equal(made.data.labels[:200], data.labels)
    assert made.poisoned_positions.tolist() == list(range(200, 220))
    originals = made.data.ids[200:]
    assert torch.equal(made.data.images[200:], 255 - data.images[originals])
    assert torch.equal(made.true_labels[200:], data.labels[originals])
    assert set(made.data.labels[200:].tolist()) == {3}


def test_covers_are_appended_too():
    data = images()
    made = poisoned(
        data, OwnCovers(rate_basis=RateBasis.APPEND, cover_ratio=0.5, target=3), Blackening()
    )
    assert torch.bincount(made.kinds.int()).tolist() == [200, 20, 10]
    covers = made.kinds == SampleKind.COVER
    assert int(made.data.images[covers].sum()) == 0
    assert torch.equal(made.data.labels[covers], made.true_labels[covers])
    assert torch.equal(made.data.images[:200], data.images)


def test_a_streamed_set_is_extended_like_one_in_memory(set_in_memory, set_streamed):
    options = PoisonOptions(rate_basis=RateBasis.APPEND, poison_rate=0.3)
    left, right = (poisoned(make(), options) for make in (set_in_memory, set_streamed))
    assert right.data.is_streamed
    assert torch.equal(left.data.images, right.data.images)
    some = torch.tensor([31, 2, 35])
    assert torch.equal(left.data.fetch(some), right.data.subset(some).images)
    assert torch.equal(left.data.ids, right.data.ids)


# -- batch by batch --------------------------------------------------------------------------------


def per_batch(**options):
    return OwnCovers(index_policy=IndexPolicy.PER_BATCH, **options)


def altered(options, batch, data):
    hooks = PerBatchPoisoning(Toy(options), Inverting(), data)
    hooks.options = TrainOptions(batch_size=len(batch))
    return hooks.before_augmentation(batch, 0)


def batch_of(data, positions):
    return Batch(data.fetch(positions).float() / 255, data.labels[positions], positions)


def test_a_batch_of_128_has_12_poisoned_24_covers_and_92_clean():
    data = images()
    order = torch.randperm(200, generator=seeded(1))[:128]
    batch = batch_of(data, order)
    made = altered(per_batch(poison_rate=0.1, cover_ratio=2.0, target=2), batch, data)
    assert torch.equal(made.images[:12], 1 - batch.images[:12])
    assert made.labels[:12].tolist() == [2] * 12
    assert int((made.images[12:36] != 0).sum()) == 0
    assert torch.equal(made.images[36:], batch.images[36:])
    assert torch.equal(made.labels[12:], batch.labels[12:])
    assert torch.equal(batch.images, batch_of(data, order).images)


def test_what_is_planted_in_training_may_be_another_trigger_than_at_test_time():
    class Fainter(Toy):
        def for_training(self, trigger):
            return Blackening()

    data = images()
    context = Context(method="toy", seed=0, device=torch.device("cpu"))
    made = Fainter(PoisonOptions()).poison(data, Inverting(), context)
    assert int(made.data.images[made.poisoned_positions].sum()) == 0
    hooks = PerBatchPoisoning(Fainter(per_batch()), Inverting(), data)
    hooks.options = TrainOptions(batch_size=50)
    batch = hooks.before_augmentation(batch_of(data, torch.arange(50)), 0)
    assert int(batch.images[:5].sum()) == 0
    assert isinstance(hooks.trigger, Inverting)


def test_a_narrow_basis_takes_its_share_of_those_that_qualify():
    labels = torch.tensor([0, 1, 0, 2, 0, 1, 2, 3, 0, 1])  # four of the target class
    options = PoisonOptions(poison_rate=0.5, rate_basis=RateBasis.TARGET_CLASS)
    chosen, _ = choose_in_batch(labels, options, 4)
    assert chosen.rows[chosen.valid].tolist() == [0, 2]
    options = PoisonOptions(poison_rate=0.5, rate_basis=RateBasis.NON_TARGET)
    chosen, _ = choose_in_batch(labels, options, 4)
    assert chosen.rows[chosen.valid].tolist() == [1, 3, 5]


def test_a_batch_without_enough_that_qualify_is_poisoned_as_far_as_it_goes():
    data = images()
    batch = batch_of(data, torch.tensor([0, 4, 8, 1, 12, 16, 20, 24, 28, 3]))
    options = PoisonOptions(
        **SPECIFIC, index_policy=IndexPolicy.PER_BATCH, poison_rate=0.4, cover_ratio=3.0
    )
    made = altered(options, batch, data)
    triggered = (made.images != batch.images).flatten(1).any(1)
    assert triggered.nonzero().flatten().tolist() == [0, 1, 2, 3]
    assert made.labels.tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 0, 3]


def test_a_batch_too_small_for_one_poisoned_image_is_refused():
    data = images()
    with pytest.raises(InputError, match=r"poison_rate 0\.1 of a batch of 8 is no image"):
        altered(per_batch(), batch_of(data, torch.arange(8)), data)


def test_the_rate_is_taken_as_written_in_decimal():
    chosen, _ = choose_in_batch(
        torch.zeros(100, dtype=torch.int64), PoisonOptions(poison_rate=0.29), 2
    )
    assert len(chosen.rows) == 29


def test_it_happens_before_the_augmentation_and_is_drawn_anew_in_every_epoch():
    data = images(64, size=8)
    seen = []

    class Watching(PerBatchPoisoning):
        def transform_batch(self, batch, epoch):
            seen.append((epoch, batch.indices[:12].tolist(), batch.images[:12]))
            return batch

    class Whitening(Inverting):
        def apply(self, images, labels, indices):
            return images * 0 + 1

    hooks = Watching(Toy(per_batch(poison_rate=0.2)), Whitening(), data)
    context = Context(method="toy", seed=0, device=torch.device("cpu"))
    options = TrainOptions(epochs=2, batch_size=64, crop_padding=2, precision="float32")
    model = tiny_network()
    model.network.conv1 = torch.nn.Conv2d(1, 24, 3, padding=1)
    model.register_buffer("mean", torch.zeros(1, 1, 1, 1))
    model.register_buffer("std", torch.ones(1, 1, 1, 1))
    context.fit(model, data, options, hooks=hooks)
    (_, first, pixels), (_, second, _) = seen
    assert set(pixels.unique().tolist()) == {0.0, 1.0}  # white, and the border of the crop
    assert first != second
