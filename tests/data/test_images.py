"""Sets of images: what they refuse, and that streamed ones are like those in memory."""

from __future__ import annotations

import pytest
import torch

from backdoorkit.data.images import ImageSet
from backdoorkit.data.memory import BUDGET_VARIABLE
from backdoorkit.errors import ContractError


def assert_same(left, right):
    assert torch.equal(left.images, right.images)
    assert torch.equal(left.labels, right.labels)
    assert torch.equal(left.ids, right.ids)
    assert left.class_names == right.class_names
    assert (len(left), left.shape, left.num_classes) == (len(right), right.shape, right.num_classes)


def test_set_tells_shape_classes_and_ids(make_set):
    data = make_set()
    assert (len(data), data.shape, data.num_classes) == (30, (3, 6, 5), 5)
    assert data.class_names == ("0", "1", "2", "3", "4")
    assert data.ids.tolist() == list(range(30))


def test_number_of_classes_comes_from_the_labels_where_not_given(make_images):
    data = ImageSet.from_tensors(make_images(3), torch.tensor([0, 4, 1]))
    assert data.num_classes == 5


def test_images_in_memory_are_not_copied(make_images):
    images = make_images()
    data = ImageSet.from_tensors(images, torch.zeros(30, dtype=torch.int64))
    assert data.images.data_ptr() == images.data_ptr()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(4, 3, 8, 8)}, "expected images as uint8"),
        ({"images": torch.zeros(4, 8, 8, dtype=torch.uint8)}, "shape N x C x H x W"),
        ({"labels": torch.zeros(4)}, "expected labels as int64"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"of shape \(4,\)"),
        ({"labels": torch.tensor([0, 1, 2, 3])}, "labels from 0 to 2, got labels from 0 to 3"),
        ({"labels": torch.tensor([0, -1, 2, 1])}, "got labels from -1 to 2"),
        ({"class_names": ["a", "b"]}, "expected one name for each of 3 classes, got 2"),
        ({"ids": torch.zeros(3, dtype=torch.int64)}, "expected ids as int64"),
    ],
)
def test_what_is_no_set_is_refused(change, message):
    given = {
        "images": torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
        "labels": torch.zeros(4, dtype=torch.int64),
        "num_classes": 3,
        **change,
    }
    images, labels = given.pop("images"), given.pop("labels")
    with pytest.raises(ContractError, match=message):
        ImageSet.from_tensors(images, labels, **given)


def test_fetch_gives_the_images_at_positions_in_their_order(make_set, make_images):
    positions = torch.tensor([7, 0, 29, 7])
    assert torch.equal(make_set().fetch(positions), make_images()[positions])


def test_fetching_nothing_gives_no_images(make_set):
    assert make_set().fetch(torch.tensor([], dtype=torch.int64)).shape == (0, 3, 6, 5)


def test_subset_keeps_ids_and_order(make_set, make_images):
    part = make_set().subset(torch.tensor([5, 3, 20]))
    assert part.ids.tolist() == [5, 3, 20]
    assert torch.equal(part.images, make_images()[[5, 3, 20]])
    assert part.labels.tolist() == [0, 1, 0]
    assert part.num_classes == 5


def test_subset_of_a_subset_counts_within_it(make_set, make_images):
    part = make_set().subset(torch.tensor([5, 3, 20])).subset(torch.tensor([2, 0]))
    assert part.ids.tolist() == [20, 5]
    assert torch.equal(part.images, make_images()[[20, 5]])


def test_replaced_changes_those_samples_and_no_others(make_set, make_images):
    data = make_set()
    other = make_images(2, seed=1)
    changed = data.replaced(torch.tensor([4, 1]), other, torch.tensor([1, 0]))
    expected = make_images()
    expected[4], expected[1] = other[0], other[1]
    assert torch.equal(changed.images, expected)
    assert (changed.labels != data.labels).nonzero().flatten().tolist() == [1, 4]
    assert changed.labels[[4, 1]].tolist() == [1, 0]
    assert torch.equal(data.images, make_images())  # the original stays as it was


def test_streamed_set_goes_through_any_chain_like_one_in_memory(
    set_in_memory, set_streamed, make_images
):
    def chain(data):
        data = data.subset(torch.arange(29, -1, -2))
        data = data.replaced(torch.tensor([3, 8]), make_images(2, seed=1), torch.tensor([1, 1]))
        data = data.subset(torch.tensor([8, 2, 3, 9]))
        return data.replaced(torch.tensor([0]), make_images(1, seed=2), torch.tensor([4]))

    left, right = chain(set_in_memory()), chain(set_streamed())
    assert right.is_streamed
    assert not left.is_streamed
    assert_same(left, right)


def test_replacing_all_of_a_streamed_set_leaves_nothing_to_stream(set_streamed, make_images):
    everything = torch.arange(29, -1, -1)
    images = make_images(seed=1)
    changed = set_streamed().replaced(everything, images, torch.zeros(30, dtype=torch.int64))
    assert not changed.is_streamed
    assert torch.equal(changed.images, images.flip(0))


def test_overlay_reads_only_what_shows(counting_source, make_images):
    source = counting_source(make_images())
    labels = torch.zeros(30, dtype=torch.int64)
    data = ImageSet.from_source(source, labels, streaming="always")
    changed = data.replaced(torch.tensor([0, 1, 2]), make_images(3, seed=1), labels[:3])
    changed.fetch(torch.tensor([0, 1, 2, 10]))
    assert source.fetched == 1


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 6, 5), [0, 0], "expected replacements as uint8"),
        (torch.zeros(1, 3, 6, 5, dtype=torch.uint8), [0, 0], r"of shape \(2, 3, 6, 5\)"),
        (torch.zeros(2, 3, 6, 5, dtype=torch.uint8), [0, 5], "labels from 0 to 4"),
    ],
)
def test_replacements_of_another_form_are_refused(make_set, images, labels, message):
    with pytest.raises(ContractError, match=message):
        make_set().replaced(torch.tensor([0, 1]), images, torch.tensor(labels))


def test_source_that_fits_is_read_into_memory_once(counting_source, make_images):
    source = counting_source(make_images())
    data = ImageSet.from_source(source, torch.zeros(30, dtype=torch.int64))
    assert not data.is_streamed
    assert torch.equal(data.images, make_images())
    assert source.fetched == 30


def test_source_over_the_budget_is_streamed(counting_source, make_images, monkeypatch):
    monkeypatch.setenv(BUDGET_VARIABLE, "0.000001")  # a thousand bytes
    source, labels = counting_source(make_images()), torch.zeros(30, dtype=torch.int64)
    assert ImageSet.from_source(source, labels).is_streamed
    assert not ImageSet.from_source(source, labels, streaming="never").is_streamed


def test_moving_to_where_it_is_changes_nothing(make_set):
    data = make_set()
    assert data.to("cpu") is data


@pytest.mark.gpu
def test_set_in_memory_moves_whole_and_a_streamed_one_stays(cuda, set_in_memory, set_streamed):
    moved = set_in_memory().to(cuda)
    assert moved.images.is_cuda
    assert moved.labels.is_cuda
    assert moved.to("cuda") is moved
    assert set_streamed().to(cuda).device.type == "cpu"
    part = moved.subset(torch.tensor([4, 2]))  # positions may be on the CPU
    assert torch.equal(part.images.cpu(), set_in_memory().images[[4, 2]])


@pytest.mark.gpu
def test_set_too_large_for_the_device_stays(cuda, set_in_memory, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    assert set_in_memory().to(cuda).device.type == "cpu"
