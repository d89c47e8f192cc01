"""Who is poisoned, with which image, under which label, and what is recorded."""

from __future__ import annotations

import math

import pytest
import torch

from backdoorkit.contracts import Trigger
from backdoorkit.data.choosing import choose_positions, map_labels
from backdoorkit.data.images import ImageSet
from backdoorkit.data.poison import (
    PoisonedSet,
    SampleKind,
    apply_trigger,
    poison_by_options,
    quantize,
)
from backdoorkit.errors import ContractError, InputError
from backdoorkit.hooks.shared_options import LabelMapping, PoisonOptions, RateBasis


class Spy(Trigger):
    """Inverts the images, and remembers how it was called."""

    def __init__(self, tensors=None):
        self.calls = []
        self.tensors = tensors or {}

    def apply(self, images, labels, indices):
        self.calls.append((images, labels, indices, torch.is_autocast_enabled("cpu")))
        return 1 - images

    def state(self):
        return self.tensors


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def chosen(labels, num_classes=10, seed=0, **options):
    return choose_positions(labels, PoisonOptions(**options), num_classes, seeded(seed))


#: 100 samples of class 0, 60 of class 1, 40 of class 2
UNEQUAL = torch.tensor([0] * 100 + [1] * 60 + [2] * 40)[torch.randperm(200, generator=seeded(9))]


@pytest.mark.parametrize(
    ("basis", "rate", "count", "classes"),
    [
        ("all", 0.1, 20, {0, 1, 2}),
        ("all", 1.0, 200, {0, 1, 2}),
        ("all-within-target", 0.1, 20, {1}),
        ("all-within-target", 0.3, 60, {1}),
        ("target-class", 0.1, 6, {1}),
        ("target-class", 1.0, 60, {1}),
        ("non-target", 0.1, 14, {0, 2}),
        ("non-target", 1.0, 140, {0, 2}),
    ],
)
def test_rate_basis_decides_count_and_candidates(basis, rate, count, classes):
    positions = chosen(UNEQUAL, 3, poison_rate=rate, rate_basis=RateBasis(basis), target=1)
    assert len(positions) == count
    assert set(UNEQUAL[positions].tolist()) == classes
    assert positions.tolist() == sorted(set(positions.tolist()))


@pytest.mark.parametrize(
    ("rate", "count", "wanted"),
    [
        (0.05, 10, 1),  # 0.5
        (0.25, 10, 3),  # 2.5: half goes up, where Python's round would go to the even number
        (0.249, 10, 2),
        (0.29, 50, 15),  # 14.5, though in binary the product is a little less
        (0.1, 45, 5),  # 4.5
    ],
)
def test_count_is_rounded_half_up_from_the_decimal_rate(rate, count, wanted):
    assert len(chosen(torch.zeros(count, dtype=torch.int64), poison_rate=rate)) == wanted


def test_more_than_there_is_is_refused_with_the_counts():
    with pytest.raises(
        InputError,
        match=r"poison_rate 0\.5 with rate_basis 'all-within-target' wants 100 samples of the "
        r"target class and there are 40; lower the rate",
    ):
        chosen(UNEQUAL, 3, poison_rate=0.5, rate_basis=RateBasis.ALL_WITHIN_TARGET, target=2)


def test_positive_rate_that_comes_to_nothing_is_refused():
    with pytest.raises(InputError, match="is none of 200 samples; raise the rate"):
        chosen(UNEQUAL, 3, poison_rate=0.001)


def test_target_that_is_no_class_is_refused():
    with pytest.raises(InputError, match="target 3 is not a class of this data set; it has 3"):
        chosen(UNEQUAL, 3, target=3)
    with pytest.raises(InputError, match="target 3 is not a class"):
        map_labels(UNEQUAL, PoisonOptions(target=3), 3)


def test_choice_depends_on_the_generator_alone_and_is_fair():
    labels = torch.zeros(100, dtype=torch.int64)
    assert torch.equal(chosen(labels, seed=1), chosen(labels, seed=1))
    times = torch.zeros(100)
    for seed in range(400):
        times[chosen(labels, seed=seed)] += 1
    assert times.sum() == 4000
    assert times.min() > 10  # each is expected 40 times, standard deviation 6
    assert times.max() < 70


@pytest.mark.parametrize(
    ("mapping", "wanted"), [("all-to-one", [2, 2, 2, 2]), ("all-to-all", [1, 2, 3, 0])]
)
def test_label_maps(mapping, wanted):
    options = PoisonOptions(label_map=LabelMapping(mapping), target=2)
    assert map_labels(torch.tensor([0, 1, 2, 3]), options, 4).tolist() == wanted


def test_quantize_gives_every_grey_level_back():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(quantize(levels.float() / 255), levels)


def test_quantize_rounds_half_up_and_clamps():
    values = torch.tensor([0.5, 1.5, 2.5, 152.4, 153.6, 254.4]) / 255
    assert quantize(values).tolist() == [1, 2, 3, 152, 154, 254]
    assert quantize(torch.tensor([-0.5, 1.5, -0.0, 1.0])).tolist() == [0, 255, 0, 255]


def test_trigger_gets_float_images_labels_and_ids_in_chunks(make_images):
    images = make_images(10, (3, 32, 32))
    labels, ids, trigger = torch.arange(10), torch.arange(100, 110), Spy()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = apply_trigger(trigger, images, labels, ids, chunk=4)
    assert torch.equal(made, 255 - images)
    assert [len(call[0]) for call in trigger.calls] == [4, 4, 2]
    assert torch.equal(torch.cat([call[0] for call in trigger.calls]), images.float() / 255)
    assert torch.cat([call[1] for call in trigger.calls]).tolist() == list(range(10))
    assert torch.cat([call[2] for call in trigger.calls]).tolist() == list(range(100, 110))
    assert not any(call[3] for call in trigger.calls)


def test_large_images_come_in_smaller_chunks(make_images):
    trigger, some = Spy(), torch.arange(10)
    apply_trigger(trigger, make_images(10, (3, 64, 64)), some, some, chunk=16)
    assert [len(call[0]) for call in trigger.calls] == [4, 4, 2]


def test_trigger_that_writes_into_its_input_harms_nothing(make_images):
    class Writing(Spy):
        def apply(self, images, labels, indices):
            return images.zero_()

    images, some = make_images(), torch.arange(30)
    assert apply_trigger(Writing(), images, some, some).sum() == 0
    assert torch.equal(images, make_images())


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (torch.zeros(3, 6, 5), r"expected Wrong.apply to give float images of shape \(30, 3"),
        (torch.zeros(30, 3, 6, 5, dtype=torch.uint8), "got torch.uint8"),
        (torch.full((30, 3, 6, 5), math.nan), "not finite"),
    ],
)
def test_trigger_that_gives_something_else_is_refused(make_images, result, message):
    class Wrong(Spy):
        def apply(self, images, labels, indices):
            return result

    some = torch.arange(30)
    with pytest.raises(ContractError, match=message):
        apply_trigger(Wrong(), make_images(), some, some)


def test_poisoned_set_has_trigger_label_and_record(make_set):
    data = make_set()
    poisoned = poison_by_options(data, Spy(), PoisonOptions(poison_rate=0.5, target=3), seeded())
    where = poisoned.poisoned_positions
    rest = (poisoned.kinds == SampleKind.CLEAN).nonzero().flatten()
    assert (len(where), len(rest)) == (15, 15)
    assert torch.equal(poisoned.data.images[where], 255 - data.images[where])
    assert torch.equal(poisoned.data.images[rest], data.images[rest])
    assert poisoned.data.labels[where].tolist() == [3] * 15
    assert torch.equal(poisoned.data.labels[rest], data.labels[rest])
    assert torch.equal(poisoned.true_labels, data.labels)
    assert torch.equal(poisoned.data.ids, data.ids)
    assert poisoned.kinds.dtype == torch.uint8


def test_streamed_set_is_poisoned_like_one_in_memory(set_in_memory, set_streamed):
    options = PoisonOptions(poison_rate=0.3)
    left, right = (
        poison_by_options(make(), Spy(), options, seeded(1))
        for make in (set_in_memory, set_streamed)
    )
    assert right.data.is_streamed
    assert torch.equal(left.data.images, right.data.images)
    assert torch.equal(left.data.labels, right.data.labels)
    assert torch.equal(left.kinds, right.kinds)


def test_trigger_sees_the_stable_ids_of_a_subset(make_set):
    data, trigger = make_set().subset(torch.arange(29, 9, -1)), Spy()
    poisoned = poison_by_options(data, trigger, PoisonOptions(poison_rate=0.5), seeded())
    seen = torch.cat([call[2] for call in trigger.calls])
    assert torch.equal(seen, data.ids[poisoned.poisoned_positions])


def test_rate_0_changes_nothing(make_set):
    data, trigger = make_set(), Spy()
    poisoned = poison_by_options(data, trigger, PoisonOptions(poison_rate=0), seeded())
    assert poisoned.data is data
    assert torch.equal(poisoned.true_labels, data.labels)
    assert poisoned.kinds.sum() == 0
    assert len(poisoned.poisoned_positions) == 0
    assert trigger.calls == []


def test_rate_1_poisons_everything(make_set):
    data = make_set()
    options = PoisonOptions(poison_rate=1, label_map=LabelMapping.ALL_TO_ALL)
    poisoned = poison_by_options(data, Spy(), options, seeded())
    assert torch.equal(poisoned.data.images, 255 - data.images)
    assert torch.equal(poisoned.data.labels, (data.labels + 1) % 5)
    assert bool((poisoned.kinds == SampleKind.POISONED).all())


def test_clean_label_basis_leaves_all_labels(make_set):
    data = make_set()
    options = PoisonOptions(poison_rate=0.5, rate_basis=RateBasis.TARGET_CLASS, target=2)
    poisoned = poison_by_options(data, Spy(), options, seeded())
    assert torch.equal(poisoned.data.labels, data.labels)
    assert len(poisoned.poisoned_positions) == 3  # of six


def test_covers_are_not_poison(set_in_memory):
    data = set_in_memory(4)
    kinds = torch.tensor([0, 1, 2, 1], dtype=torch.uint8)
    assert PoisonedSet(data, data.labels, kinds).poisoned_positions.tolist() == [1, 3]


def test_record_of_another_length_is_refused(set_in_memory):
    data = set_in_memory(4)
    with pytest.raises(ContractError, match=r"expected kinds as torch.uint8 of shape \(4,\)"):
        PoisonedSet(data, data.labels, torch.zeros(4))
    with pytest.raises(ContractError, match="expected true_labels"):
        PoisonedSet(data, data.labels[:2], torch.zeros(4, dtype=torch.uint8))


@pytest.mark.gpu
def test_streamed_images_go_to_where_the_trigger_is(cuda, set_streamed, set_in_memory):
    class OnDevice(Spy):
        def apply(self, images, labels, indices):
            assert images.device == labels.device == indices.device == self.tensors["p"].device
            return super().apply(images, labels, indices)

    options = PoisonOptions(poison_rate=0.5)
    trigger = OnDevice({"p": torch.zeros(1, device=cuda)})
    made = poison_by_options(set_streamed(), trigger, options, seeded())
    assert len(trigger.calls) == 1
    for data in (set_in_memory(), set_in_memory().to(cuda)):
        again = poison_by_options(data, Spy(), options, seeded())
        assert torch.equal(made.data.images, again.data.images.cpu())
        assert torch.equal(made.kinds, again.kinds.cpu())


def test_poisoned_set_is_an_image_set(set_in_memory):
    poisoned = poison_by_options(set_in_memory(), Spy(), PoisonOptions(), seeded())
    assert isinstance(poisoned.data, ImageSet)
