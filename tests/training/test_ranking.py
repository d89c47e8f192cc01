"""AUROC against pairs counted by hand."""

from __future__ import annotations

import torch

from backdoorkit.api import area_under_curve


def test_pairs_are_won_lost_or_halved():
    assert area_under_curve(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.0])) == (2 + 1.5) / 4
    assert area_under_curve(torch.tensor([3.0]), torch.tensor([1.0, 2.0])) == 1
    assert area_under_curve(torch.tensor([0.0]), torch.tensor([1.0, 2.0])) == 0


def test_undefined_without_either_group():
    assert area_under_curve(torch.tensor([]), torch.tensor([1.0])) is None
    assert area_under_curve(torch.tensor([1.0]), torch.tensor([])) is None
