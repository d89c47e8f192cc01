"""Trigger-activated change and coverage: known answers, and what they find on a victim."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import nn
from torch.nn import functional

from backdoorkit.api import ImageSet, InputError, find_structure
from backdoorkit.pipeline import envelope
from backdoorkit.testing import tiny_context, tiny_images, tiny_network, tiny_victim
from backdoorkit_tsbd import TriggerActivatedChangeConfig, _channels, backdoorkit_analyses
from backdoorkit_tsbd._channels import channel_activity, norms_of, with_outputs
from backdoorkit_tsbd._coverage import coverage
from backdoorkit_tsbd._trigger_activated_change import TriggerActivatedChange

SHAPE = (3, 16, 16)
(INFO,) = [info for info in backdoorkit_analyses() if info.name == "trigger-activated-change"]


class Convolutional(nn.Module):
    """Linear but for the head's input; channels as the weights say."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.head = nn.Linear(5, 4)

    def forward(self, images):
        return self.head(self.conv(images).mean(dim=(2, 3)))


class Tokens(nn.Module):
    """Linear layers on patches."""

    def __init__(self):
        super().__init__()
        self.mlp = nn.Linear(48, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, images):
        tokens = functional.unfold(images, 4, stride=4).transpose(1, 2)
        return self.head(self.mlp(tokens).mean(dim=1))


class Summed(nn.Module):
    """A norm that reads a sum belongs to neither of its convolutions."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 4)

    def forward(self, images):
        hidden = self.norm(self.one(images) + self.other(images)).relu()
        return self.head(hidden.mean(dim=(2, 3)))


def dim_images(count=12):
    """With room for a trigger of 51 grey levels on top."""
    data = tiny_images(count)
    return data.replaced(torch.arange(count), data.images // 2, data.labels)


def with_square(data):
    """An additive trigger: 51 / 255 = 0.2 more in a square."""
    images = data.images.clone()
    images[..., 4:9, 4:9] += 51
    return data.replaced(torch.arange(len(data)), images, data.labels)


def difference(data):
    return (with_square(data).images[:1].float() - data.images[:1].float()) / 255


def activity(model, clean, triggered, **options):
    structure = find_structure(model, SHAPE)
    ranked = structure.layers("conv", "linear", "attention")
    layers = with_outputs(model, structure, ranked, clean.images[:1] / 255)
    context = tiny_context("tac")
    return channel_activity(model, structure, layers, clean, triggered, context, **options)


def made(cls):
    torch.manual_seed(0)
    return cls().eval()


# -- trigger-activated change ----------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2])
def test_of_a_linear_channel_it_is_the_norm_of_what_the_trigger_adds(order):
    model, data = made(Convolutional), dim_images()
    added = functional.conv2d(difference(data), model.conv.weight, padding=1)
    expected = torch.linalg.vector_norm(added[0].flatten(1), ord=order, dim=1)
    found = activity(model, data, with_square(data), order=order)["conv"].change
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_trigger_that_changes_nothing_activates_nothing():
    found = activity(tiny_network(), dim_images(), dim_images())
    for layer in found.values():
        assert not layer.change.any()
        assert torch.equal(layer.clean, layer.triggered)


def test_scaling_a_channel_scales_its_change():
    model, data = made(Convolutional), dim_images()
    before = activity(model, data, with_square(data))["conv"].change
    with torch.no_grad():
        model.conv.weight[2] *= -3
    after = activity(model, data, with_square(data))["conv"].change
    factors = torch.tensor([1.0, 1.0, 3.0, 1.0, 1.0])
    torch.testing.assert_close(after, factors * before, rtol=1e-4, atol=1e-5)


def test_behind_batch_norm_a_channel_is_scaled_by_it():
    model, data = tiny_victim().resources().model, dim_images()
    at_layer, behind = (
        activity(model, data, with_square(data), after_norm=flag)["network.conv1"].change
        for flag in (False, True)
    )
    norm = model.network.bn1
    scale = norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(behind, scale.detach() * at_layer, rtol=1e-4, atol=1e-5)


def test_activations_are_rectified_and_meaned():
    model, data = tiny_victim().resources().model, dim_images()
    found = activity(model, data, with_square(data))["network.conv1"]
    with torch.no_grad():
        images = (data.images.float() / 255 - 0.5) / 0.25
        hidden = model.network.bn1(model.network.conv1(images)).relu()
    torch.testing.assert_close(found.clean, hidden.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert not torch.equal(found.clean, found.triggered)


def test_the_size_of_batches_does_not_matter(monkeypatch):
    model, data = tiny_network(), dim_images(13)
    whole = activity(model, data, with_square(data))
    monkeypatch.setattr(_channels, "_BATCH", 10)
    for name, layer in activity(model, data, with_square(data)).items():
        torch.testing.assert_close(layer.change, whole[name].change, rtol=1e-4, atol=1e-5)


def test_tokens_are_positions():
    model, data = made(Tokens), dim_images()
    added = model.mlp.weight @ functional.unfold(difference(data), 4, stride=4)
    expected = torch.linalg.vector_norm(added[0], dim=1)
    found = activity(model, data, with_square(data))["mlp"].change
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)


class Attending(nn.Module):
    """Attention uses its projections' weights without calling them; the rest is called."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(48, 2, batch_first=True)
        self.mlp = nn.Linear(48, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, images):
        tokens = functional.unfold(images, 4, stride=4).transpose(1, 2)
        tokens = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(self.mlp(tokens).mean(dim=1))


def test_layers_that_are_never_called_are_left_out():
    model, data = made(Attending), dim_images()
    structure = find_structure(model, SHAPE)
    assert len(structure.layers("linear", "attention")) > 1
    assert set(activity(model, data, with_square(data))) == {"mlp"}


def test_a_norm_counts_where_it_reads_one_layer_alone():
    found = find_structure(tiny_network(), SHAPE)
    assert norms_of(found, found.layers("conv")) == {
        "network.conv1": "network.bn1",
        "network.conv2": "network.bn2",
    }
    found = find_structure(made(Summed), SHAPE)
    assert norms_of(found, found.layers("conv")) == {}


# -- coverage --------------------------------------------------------------------------------------


def test_a_ranking_covers_itself_and_its_opposite_nothing():
    change = torch.tensor([0.1, 0.9, 0.5, 0.3, 0.7, 0.2])
    for ratio in (0.01, 0.3, 0.5, 1.0):
        assert coverage(change, change, ratio) == 1
    assert coverage(-change, change, 0.5) == 0
    assert coverage(torch.tensor([0.0, 9, 0, 8, 7, 0]), change, 0.5) == pytest.approx(2 / 3)


def test_random_rankings_cover_the_ratio():
    generator = torch.Generator().manual_seed(0)
    change = torch.rand(50, generator=generator)
    shares = [coverage(torch.rand(50, generator=generator), change, 0.2) for _ in range(300)]
    assert sum(shares) / len(shares) == pytest.approx(0.2, abs=0.02)


def test_where_nothing_changes_there_is_nothing_to_cover():
    assert coverage(torch.tensor([1.0, 2.0]), torch.zeros(2), 0.5) is None


# -- the analysis ----------------------------------------------------------------------------------


def analyse(*, clean=None, truth=None, **options):
    victim = tiny_victim()
    resources = victim.resources()
    if clean is not None:
        resources.clean = clean
    known = attrs.evolve(victim.truth(), **(truth or {}))
    analysis = TriggerActivatedChange(TriggerActivatedChangeConfig(**options))
    return envelope.run_analysis(analysis, INFO, resources, known, tiny_context("tac"))


def test_the_trigger_moves_the_victim_s_neurons_and_not_its_twin_s():
    result = analyse(ratio=0.25)
    values = result.values
    assert values["TAC"] > 1.5 * values["twin TAC"]
    assert values["chance"] == 0.25
    assert result.details["images"] == 192  # the 64 test images of the target class say nothing
    assert result.details["location"]["network.conv2"] == "network.bn2"
    layer = result.details["by_layer"]["network.conv2"]
    assert layer["coverage"]["NWC"] == values["NWC coverage"]
    assert len(result.tensors["change.network.conv2"]) == 32
    assert set(result.figures) == {"coverage", "activations"}


def test_a_trigger_without_effect_leaves_values_undefined():
    values = analyse(truth={"plant": lambda data: data}, max_epochs=1).values
    assert values["TAC"] == 0
    assert values["NWC coverage"] is None
    assert values["activation rho"] is None


def test_no_more_images_than_asked_for_are_looked_at():
    assert analyse(images=40, max_epochs=1).details["images"] <= 40


def test_an_attack_that_changes_no_label_is_refused():
    nothing = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(InputError, match="another target"):
        analyse(truth={"plant": lambda data: data.subset(nothing)})


def test_an_empty_reserve_is_refused():
    empty = ImageSet.from_tensors(
        torch.zeros(0, *SHAPE, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), num_classes=4
    )
    with pytest.raises(InputError, match="empty"):
        analyse(clean=empty)
