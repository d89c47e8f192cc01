"""The half mixer against a plain loop, and where it may cut."""

from __future__ import annotations

import attrs
import pytest
import torch

from backdoorkit.api import InputError
from backdoorkit_cba._mixer import DRAWS, Cuts, draw_cuts, mix


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def cuts_of(count, height, width, jitter=3, seed=0):
    return draw_cuts(torch.rand(count, DRAWS, generator=seeded(seed)), height, width, jitter)


def looped(first, second, cuts):
    """One pair after the other, with slices."""
    made = []
    for n in range(len(first)):
        a, b = first[n], second[n]
        if cuts.is_swapped[n]:
            a, b = b, a
        axis = 2 if cuts.is_vertical[n] else 1
        length, u, v = (int(x[n]) for x in (cuts.length, cuts.first_start, cuts.second_start))
        rest = a.shape[axis] - length
        made.append(torch.cat([a.narrow(axis, u, length), b.narrow(axis, v, rest)], dim=axis))
    return torch.stack(made)


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (9, 13), (32, 40)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_one_gather_is_the_loop(size, dtype):
    first, second = (
        torch.randint(0, 256, (200, 3, *size), generator=seeded(seed)).to(dtype) for seed in (1, 2)
    )
    cuts = cuts_of(200, *size)
    assert torch.equal(mix(first, second, cuts), looped(first, second, cuts))


def test_both_ways_and_both_orders_occur():
    cuts = cuts_of(400, 32, 32)
    for share in (cuts.is_swapped.float().mean(), cuts.is_vertical.float().mean()):
        assert 0.4 < float(share) < 0.6


def test_cuts_are_where_the_published_mixer_has_them():
    """At 32 pixels the first part has 13 to 19, and pixel 31 is never looked at."""
    cuts = cuts_of(20000, 32, 32)
    assert cuts.length.unique().tolist() == list(range(13, 20))
    assert cuts.first_start.min() == 0
    assert cuts.second_start.min() == 0
    assert (cuts.first_start + cuts.length).max() == 31
    assert (cuts.second_start + 32 - cuts.length).max() == 31


def test_lengths_and_starts_are_uniform():
    cuts = cuts_of(20000, 32, 32)
    shares = torch.bincount(cuts.length)[13:] / 20000
    assert torch.allclose(shares, torch.full((7,), 1 / 7), atol=0.02)
    starts = torch.bincount(cuts.first_start[cuts.length == 16])
    assert len(starts) == 16
    assert torch.allclose(starts / starts.sum(), torch.full((16,), 1 / 16), atol=0.03)


def test_every_pixel_is_of_one_image_and_both_give_a_good_half():
    zeros, ones = torch.zeros(100, 1, 32, 32), torch.ones(100, 1, 32, 32)
    made = mix(zeros, ones, cuts_of(100, 32, 32))
    assert set(made.unique().tolist()) == {0.0, 1.0}
    share = made.mean(dim=(1, 2, 3))
    assert share.min() >= 13 / 32
    assert share.max() <= 19 / 32


def test_a_mix_by_hand():
    first, second = torch.arange(8.0).view(1, 1, 1, 8), 10 + torch.arange(8.0).view(1, 1, 1, 8)
    true = torch.tensor([True])
    cuts = Cuts(
        is_swapped=~true,
        is_vertical=true,
        length=torch.tensor([5]),
        first_start=torch.tensor([2]),
        second_start=torch.tensor([4]),
    )
    assert mix(first, second, cuts).flatten().tolist() == [2, 3, 4, 5, 6, 14, 15, 16]
    swapped = attrs.evolve(cuts, is_swapped=true)
    assert mix(first, second, swapped).flatten().tolist() == [12, 13, 14, 15, 16, 4, 5, 6]


def test_two_flat_images_of_one_value_stay_flat():
    flat = torch.full((10, 3, 8, 8), 0.3)
    assert torch.equal(mix(flat, flat.clone(), cuts_of(10, 8, 8)), flat)


def test_without_jitter_the_cut_is_in_the_middle():
    assert cuts_of(50, 8, 8, jitter=0).length.unique().tolist() == [4]


def test_images_that_are_too_small_for_the_jitter_are_refused():
    with pytest.raises(InputError, match="set jitter below 3"):
        cuts_of(1, 32, 6)
