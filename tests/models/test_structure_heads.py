"""Which layer is the head where it is no single linear one, and where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from backdoorkit.errors import StructureError, UnknownNameError
from backdoorkit.models.structure import find_structure

SHAPE = (3, 16, 16)


def test_a_convolution_can_be_the_head():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )  # fmt: skip
    structure = find_structure(network, SHAPE)
    assert structure.head == "2"
    assert structure.last_convolution == "0"
    images = torch.rand(4, *SHAPE)
    features, logits = structure.features_and_logits(network, images)
    torch.testing.assert_close(features, network[:2](images).mean((2, 3)))
    assert logits.shape == (4, 10)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.one = nn.Linear(8, 10)
        self.two = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return (self.one(x) + self.two(x)) / 2


def test_two_heads_are_refused_by_name_until_one_is_given():
    structure = find_structure(TwoHeads(), SHAPE)
    assert not structure.has_head
    with pytest.raises(StructureError, match=r"nc needs .* 'one' and 'two' .* head="):
        structure.require_head("nc")
    with pytest.raises(StructureError, match="head="):
        _ = structure.feature_dim
    assert find_structure(TwoHeads(), SHAPE, head="two").head == "two"


def test_a_head_given_by_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'one'"):
        find_structure(TwoHeads(), SHAPE, head="onne")


def test_logits_without_a_layer_before_them_have_no_head():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    structure = find_structure(network, SHAPE)
    with pytest.raises(StructureError, match="no layer"):
        structure.require_head("nc")
    with pytest.raises(StructureError, match="fp needs a convolution"):
        structure.require_last_convolution("fp")
