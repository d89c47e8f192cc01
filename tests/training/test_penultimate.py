"""Penultimate features of a whole set, and predictions with some of them removed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from backdoorkit.api import (
    StructureError,
    collect_features,
    find_structure,
    predictions_without,
    refuse_other_head,
    require_linear_head,
)
from backdoorkit.testing import tiny_context, tiny_images, tiny_network

CONTEXT = tiny_context("test")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- collecting ------------------------------------------------------------------------------------


def test_features_and_logits_of_every_image_belong_together():
    model, data = tiny_network(), tiny_images(150)  # more than one batch
    features, logits = collect_features(model, CONTEXT.structure(model), data, CONTEXT)
    head = model.network.head
    assert features.shape == (150, 32)
    assert torch.equal(logits, CONTEXT.predict(model, data))
    torch.testing.assert_close(features @ head.weight.T + head.bias, logits)


def test_nothing_is_left_on_the_model_and_it_is_run_in_eval_mode():
    model = tiny_network().train()
    before = copy.deepcopy(model.state_dict())
    collect_features(model, CONTEXT.structure(model), tiny_images(8), CONTEXT)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_images_may_be_changed_first():
    model, data = tiny_network(), tiny_images(8)
    structure = CONTEXT.structure(model)
    changed, _ = collect_features(model, structure, data, CONTEXT, change=lambda x: x.flip(3))
    flipped = data.replaced(torch.arange(8), data.images.flip(3), data.labels)
    assert torch.equal(changed, collect_features(model, structure, flipped, CONTEXT)[0])
    assert not torch.equal(changed, collect_features(model, structure, data, CONTEXT)[0])


class Tokens(nn.Module):
    """The head reads every pixel; its answers are averaged."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, images):
        return self.head(images.flatten(2).transpose(1, 2)).mean(dim=1)


def test_tokens_are_averaged():
    model, data = Tokens(), tiny_images(6)
    features, _ = collect_features(model, CONTEXT.structure(model), data, CONTEXT)
    torch.testing.assert_close(features, (data.images.float() / 255).mean(dim=(2, 3)))


# -- removing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 3])
def test_the_sweep_is_what_literal_removal_gives(columns):
    head, features = nn.Linear(12, 5), random(40, 12)
    units = torch.tensor([3, 0, 2, 1]) if columns == 3 else torch.tensor([3, 0, 11, 7])
    with torch.no_grad():
        logits = head(features)
        kept = logits.clone()
        found = list(predictions_without(features, logits, head.weight, units, columns=columns))
        assert len(found) == 5
        for count, predicted in enumerate(found):
            masked = features.clone().view(40, -1, columns)
            masked[:, units[:count]] = 0
            assert torch.equal(predicted, head(masked.flatten(1)).argmax(dim=1))
    assert len({tuple(row.tolist()) for row in found}) > 1
    assert torch.equal(logits, kept)


# -- refusals --------------------------------------------------------------------------------------


def test_logits_that_are_not_the_heads_are_refused():
    head, features = nn.Linear(4, 3), random(10, 4)
    logits = head(features).detach()
    refuse_other_head("it", features, logits, head, "go")
    with pytest.raises(StructureError, match=r"it removes units at the last .* mean input; go"):
        refuse_other_head("it", features, logits.softmax(dim=1), head, "go")


def test_a_head_that_is_a_convolution_is_refused_by_name():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.AvgPool2d(14), nn.Flatten())
    with pytest.raises(StructureError, match=r"it prunes .* '1' .* is of kind 'conv'; go"):
        require_linear_head(find_structure(model, (3, 16, 16)), "it", "go")
    assert require_linear_head(CONTEXT.structure(tiny_network()), "it", "") == "network.head"
