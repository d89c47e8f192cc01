"""Batches: which samples, in which order, on which device, with which values."""

from __future__ import annotations

import threading

import pytest
import torch

from backdoorkit.data.augmentation import Augmentation
from backdoorkit.data.batches import batches
from backdoorkit.data.images import ImageSet
from backdoorkit.errors import ContractError, InputError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_batches_in_order_hold_every_sample_once(make_set, make_images):
    data = make_set()
    seen = list(batches(data, 8))
    assert [len(batch) for batch in seen] == [8, 8, 8, 6]
    assert torch.cat([batch.indices for batch in seen]).tolist() == list(range(30))
    assert torch.equal(torch.cat([batch.labels for batch in seen]), data.labels)
    images = torch.cat([batch.images for batch in seen])
    assert images.dtype == torch.float32
    assert torch.equal(images, make_images().float() / 255)


def test_shuffled_batches_are_a_permutation_that_the_generator_decides(make_set):
    data = make_set()

    def order(seed):
        return torch.cat([batch.indices for batch in batches(data, 8, generator=seeded(seed))])

    assert order(0).sort().values.tolist() == list(range(30))
    assert order(0).tolist() != list(range(30))
    assert torch.equal(order(0), order(0))
    assert not torch.equal(order(0), order(1))


def test_batch_belongs_together_after_shuffling(make_set, make_images):
    data = make_set()
    for batch in batches(data, 8, generator=seeded()):
        assert torch.equal(batch.images, make_images()[batch.indices].float() / 255)
        assert torch.equal(batch.labels, data.labels[batch.indices])


@pytest.mark.parametrize("crop_padding", [0, 2])
def test_streamed_and_in_memory_batches_are_identical(set_in_memory, set_streamed, crop_padding):
    def passes(data):
        shuffle, draws = seeded(3), seeded(4)
        augmentation = Augmentation(crop_padding=crop_padding, horizontal_flip=True)
        for _ in range(2):
            yield from batches(
                data, 7, generator=shuffle, augmentation=augmentation, augmentation_generator=draws
            )

    pairs = list(zip(passes(set_in_memory()), passes(set_streamed()), strict=True))
    assert len(pairs) == 10
    for left, right in pairs:
        assert torch.equal(left.images, right.images)
        assert torch.equal(left.labels, right.labels)
        assert torch.equal(left.indices, right.indices)


@pytest.mark.parametrize(
    ("count", "options", "sizes"),
    [
        (17, {}, [8, 8, 1]),
        (17, {"merge_singleton": True}, [8, 9]),
        (17, {"drop_last": True}, [8, 8]),
        (17, {"drop_last": True, "merge_singleton": True}, [8, 8]),
        (18, {"merge_singleton": True}, [8, 8, 2]),
        (16, {"merge_singleton": True}, [8, 8]),
        (1, {"merge_singleton": True}, [1]),
        (5, {"drop_last": True}, []),
        (0, {}, []),
    ],
)
def test_last_batch_is_kept_merged_or_dropped(make_set, count, options, sizes):
    data = make_set(count)
    seen = list(batches(data, 8, **options))
    assert [len(batch) for batch in seen] == sizes
    indices = [index for batch in seen for index in batch.indices.tolist()]
    assert indices == list(range(sum(sizes)))


def test_augmentation_comes_from_its_own_generator(make_set):
    data = make_set()
    augmentation = Augmentation(horizontal_flip=True)

    def images(seed):
        return torch.cat(
            [
                batch.images
                for batch in batches(
                    data, 8, augmentation=augmentation, augmentation_generator=seeded(seed)
                )
            ]
        )

    plain = data.images.float() / 255
    assert torch.equal(images(0), images(0))
    assert not torch.equal(images(0), images(1))
    mirrored = (images(0) != plain).flatten(1).any(1)
    assert 0 < mirrored.sum() < 30
    assert torch.equal(images(0)[mirrored], plain[mirrored].flip(-1))


def test_wrong_arguments_are_refused_at_the_call(set_in_memory):
    with pytest.raises(ContractError, match="batch size of at least 1, got 0"):
        batches(set_in_memory(), 0)
    with pytest.raises(ContractError, match="expected an augmentation_generator"):
        batches(set_in_memory(), 8, augmentation=Augmentation(horizontal_flip=True))


def test_leaving_a_streamed_pass_early_ends_its_thread(set_streamed):
    before = threading.active_count()
    stream = batches(set_streamed(), 1)
    next(stream)
    assert threading.active_count() > before
    stream.close()
    assert threading.active_count() == before


def test_error_while_fetching_ahead_reaches_the_caller(counting_source, make_images):
    source = counting_source(make_images())

    def fetch(positions):
        raise InputError("a.png cannot be read")

    source.fetch = fetch
    data = ImageSet.from_source(source, torch.zeros(30, dtype=torch.int64), streaming="always")
    with pytest.raises(InputError, match=r"a\.png cannot be read"):
        list(batches(data, 8))


def test_batches_can_be_used_in_inference_mode(make_set):
    with torch.inference_mode():
        assert sum(len(batch) for batch in batches(make_set(), 8)) == 30


def test_batch_images_may_be_changed_without_harm_to_the_set(make_set, make_images):
    data = make_set()
    for batch in batches(data, 8):
        batch.images.zero_()
    assert torch.equal(data.images, make_images())


@pytest.mark.gpu
@pytest.mark.parametrize("where", ["memory", "device", "streamed"])
def test_batches_on_an_accelerator_are_the_same_and_nothing_waits(
    where, cuda, set_in_memory, set_streamed
):
    data = set_streamed() if where == "streamed" else set_in_memory()
    data = data.to(cuda) if where == "device" else data
    augmentation = Augmentation(crop_padding=2, horizontal_flip=True)

    def one_pass(data, target):
        return batches(
            data,
            8,
            generator=seeded(1),
            augmentation=augmentation,
            augmentation_generator=seeded(2),
            device=target,
        )

    torch.cuda.set_sync_debug_mode("error")
    try:
        on_device = list(one_pass(data, cuda))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for left, right in zip(on_device, one_pass(set_in_memory(), None), strict=True):
        assert left.images.is_cuda
        assert left.labels.is_cuda
        assert left.indices.is_cuda
        assert torch.equal(left.images.cpu(), right.images)
        assert torch.equal(left.indices.cpu(), right.indices)


@pytest.mark.gpu
def test_batches_can_come_back_from_an_accelerator(cuda, set_in_memory):
    moved = set_in_memory().to(cuda)
    back = torch.cat([batch.images for batch in batches(moved, 8, device=torch.device("cpu"))])
    assert torch.equal(back, set_in_memory().images.float() / 255)
