"""MCR as a whole: where on the curve it ends, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from backdoorkit import Need, Selection
from backdoorkit.api import DefenseTask, ImageSet, InputError
from backdoorkit.errors import OracleNotPermittedError
from backdoorkit.hooks.options import structure
from backdoorkit.testing import tiny_context, tiny_images, tiny_network, tiny_victim
from backdoorkit_mcr import MCRConfig, backdoorkit_defenses
from backdoorkit_mcr._defense import MCR, farthest_accepted
from backdoorkit_mcr._statistics import estimate_statistics

SHAPE = (3, 16, 16)


def defend(model, clean=None, *, oracle=False, **options):
    options = {"precision": "float32", "epochs": 1, "endpoint_epochs": 1, **options}
    task = DefenseTask(
        method="mcr",
        num_classes=4,
        image_shape=SHAPE,
        resources={
            Need.WEIGHTS: model.eval(),
            Need.CLEAN_SAMPLES: tiny_images(64) if clean is None else clean,
        },
    )
    return MCR(MCRConfig(**options)).run(task, tiny_context("mcr", oracle=oracle))


def attack_success(model):
    victim = tiny_victim()
    others = (victim.test.labels != victim.target).nonzero().flatten()
    logits = tiny_context("test").predict(model, victim.triggered.subset(others))
    return float((logits.argmax(dim=1) == victim.target).float().mean())


def accuracy(model):
    return tiny_context("test").accuracy(model, tiny_victim().test)


def repaired(**options):
    """The tiny victim, repaired in settings that leave its surroundings."""
    victim = tiny_victim()
    options = {"epochs": 15, "endpoint_epochs": 15, "batch_size": 16, **options}
    return defend(
        copy.deepcopy(victim.model),
        victim.reserve,
        learning_rate=0.1,
        endpoint_learning_rate=0.2,
        **options,
    )


def test_the_place_chosen_on_clean_images_keeps_accuracy_and_no_backdoor():
    result = repaired()
    assert attack_success(tiny_victim().model) > 0.95
    assert attack_success(result.model) < 0.2
    assert accuracy(result.model) > 0.95
    assert result.details["t"] >= 0.5


def test_next_to_the_victim_the_backdoor_is_still_there():
    assert attack_success(repaired(selection=Selection.FIXED, t=0.1).model) > 0.8


def test_at_the_victims_end_are_its_weights_with_statistics_of_the_reserve():
    model, reserve = tiny_victim().model, tiny_images(64)
    result = defend(copy.deepcopy(model), reserve, selection=Selection.FIXED, t=0.0)
    expected = copy.deepcopy(model)
    estimate_statistics(expected, reserve, torch.device("cpu"))
    found = result.model.state_dict()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)
    assert result.details == {"t": 0.0, "selection": "fixed", "curve": "bezier"}


def test_old_statistics_do_not_fit_the_weights_between():
    result = repaired(selection=Selection.FIXED, t=0.7)
    stale = copy.deepcopy(result.model)
    for name, buffer in tiny_victim().model.named_buffers():
        stale.get_buffer(name).copy_(buffer)
    data = tiny_victim().test
    loss = nn.functional.cross_entropy
    context = tiny_context("test")
    fresh, old = (context.predict(model, data) for model in (result.model, stale))
    assert loss(fresh, data.labels) < loss(old, data.labels)


def test_the_record_lists_every_place_with_the_line_beside_it():
    details = defend(tiny_network(), grid=(0.25, 0.75), tolerance=1.0).details
    assert details["t"] == 0.75
    assert [place["t"] for place in details["places"]] == [0.25, 0.75]
    assert all(place["accepted"] for place in details["places"])
    assert {"accuracy", "accuracy_untrained_line"} <= set(details["places"][0])
    assert 0 <= details["victim_accuracy"] <= 1


def test_the_farthest_place_that_keeps_accuracy_is_taken():
    accuracies = {0.2: 0.9, 0.4: 0.7, 0.6: 0.85, 0.8: 0.6}
    assert farthest_accepted(accuracies, 0.8) == (0.6, (0.2, 0.6))


def test_where_no_place_keeps_accuracy_the_most_accurate_is_taken():
    assert farthest_accepted({0.2: 0.5, 0.4: 0.7, 0.6: 0.7}, 0.8) == (0.6, ())


def test_the_oracle_takes_the_nearest_of_equally_good_places():
    # Success is 1 whatever is tried.
    options = {"selection": Selection.ORACLE, "grid": (0.3, 0.6), "tolerance": 1.0}
    result = defend(tiny_network(), oracle=True, **options)
    assert result.details["t"] == 0.3
    assert result.details["selection"] == "oracle"


def test_the_oracle_needs_permission():
    with pytest.raises(OracleNotPermittedError):
        defend(tiny_network(), selection=Selection.ORACLE, grid=(0.5,), tolerance=1.0)


def test_the_penalty_may_be_on_the_points_instead():
    options = {"selection": Selection.FIXED, "weight_decay": 0.1}
    on_curve, on_points = (
        defend(tiny_network(), penalized=what, **options).model.state_dict()
        for what in ("curve", "points")
    )
    name = "network.conv2.weight"
    assert not torch.equal(on_curve[name], on_points[name])
    assert float(on_points[name].norm()) < float(tiny_network().state_dict()[name].norm())


def test_a_transformer_has_no_statistics_and_is_repaired_all_the_same():
    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 4, stride=4)
            self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)
            self.head = nn.Linear(8, 4)

        def forward(self, images):
            tokens = self.embed(images).flatten(2).transpose(1, 2)
            return self.head(self.block(tokens).mean(dim=1))

    torch.manual_seed(0)
    model = defend(Transformer(), grid=(0.5,)).model
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_an_empty_reserve_is_refused():
    empty = ImageSet.from_tensors(
        torch.zeros(0, *SHAPE, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), num_classes=4
    )
    with pytest.raises(InputError, match="empty"):
        defend(tiny_network(), empty)


def test_a_reserve_too_small_to_choose_on_is_refused_but_serves_a_fixed_place():
    few = tiny_images(8)
    with pytest.raises(InputError, match="too small"):
        defend(tiny_network(), few)
    assert defend(tiny_network(), few, selection=Selection.FIXED).details["t"] == 0.5


@pytest.mark.parametrize("grid", [(), (0.3, 0.1), (0.1, 0.1)])
def test_a_grid_that_does_not_ascend_is_refused(grid):
    with pytest.raises(ValueError, match="ascend"):
        MCRConfig(grid=grid)


def test_late_decay_is_refused_where_it_would_do_nothing():
    with pytest.raises(ValueError, match="late_decay"):
        MCRConfig(optimizer="adam")
    assert MCRConfig(optimizer="adam", late_decay=False).optimizer == "adam"


def test_presets_are_valid_configurations():
    [info] = backdoorkit_defenses()
    presets = {name: structure(info.config, values) for name, values in info.presets.items()}
    assert set(presets) == {"paper", "official", "backdoorbench"}
    assert all(preset.t == 0.1 for preset in presets.values())
    assert all(preset.selection is Selection.FIXED for preset in presets.values())
    assert presets["backdoorbench"].penalized == "points"
    assert [p.accumulate_gradients for p in presets.values()] == [False, False, True]
    assert presets["backdoorbench"].learning_rate == 3e-5
