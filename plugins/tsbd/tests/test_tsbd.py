"""TSBD as a whole, on victims that really are backdoored."""

from __future__ import annotations

import copy
import functools
import logging
from statistics import mean

import pytest
import torch
from torch import nn

from backdoorkit import Need, PoisonOptions, Selection, TrainOptions
from backdoorkit.api import (
    ContractError,
    DefenseTask,
    ImageSet,
    InputError,
    StructureError,
    chance,
    find_structure,
    poison_by_options,
)
from backdoorkit.errors import OracleNotPermittedError
from backdoorkit.hooks.options import structure
from backdoorkit.testing import (
    PatchTrigger,
    tiny_context,
    tiny_images,
    tiny_network,
)
from backdoorkit_tsbd import TSBDConfig, backdoorkit_defenses
from backdoorkit_tsbd._defense import TSBD
from backdoorkit_tsbd._layers import ranked_weights
from backdoorkit_tsbd._reinitialisation import (
    reinitialisation_mask,
    weight_change,
    zero_weights,
)
from backdoorkit_tsbd._unlearning import ascent_options, unlearn_to

SHAPE = (3, 16, 16)
CONVOLUTIONS = ("network.conv1.weight", "network.conv2.weight")


@functools.cache
def victim(seed):
    """A model with a firm backdoor: whatever has the patch is class 0."""
    trigger, generator = PatchTrigger(3), torch.Generator().manual_seed(100 + seed)
    options = PoisonOptions(poison_rate=0.2)
    data = poison_by_options(tiny_images(512, seed=10 + seed), trigger, options, generator).data
    training = TrainOptions(epochs=15, batch_size=64, learning_rate=0.1, precision="float32")
    model = tiny_network(seed)
    tiny_context("victim", seed=seed).fit(model, data, training)
    return model.eval()


def attack_success(model):
    test = tiny_images(160, seed=4)
    others = test.subset((test.labels != 0).nonzero().flatten())
    images = others.images.clone()
    images[..., -3:, -3:] = 255
    predicted = model.eval()(images.float() / 255).argmax(dim=1)
    return float((predicted == 0).float().mean())


def accuracy(model):
    return tiny_context("test").accuracy(model, tiny_images(160, seed=4))


def defend(model, clean=None, *, seed=0, oracle=False, **options):
    options = {"precision": "float32", **options}
    task = DefenseTask(
        method="tsbd",
        num_classes=4,
        image_shape=SHAPE,
        resources={
            Need.WEIGHTS: copy.deepcopy(model),
            Need.CLEAN_SAMPLES: tiny_images(128, seed=3) if clean is None else clean,
        },
    )
    return TSBD(TSBDConfig(**options)).run(task, tiny_context("tsbd", seed=seed, oracle=oracle))


def success_after_stage_one(seed, orders):
    """Mean attack success over several neuron ratios, for each order of the same neurons."""
    model, context = victim(seed), tiny_context("tsbd", seed=seed)
    reserve = tiny_images(128, seed=3)
    options = ascent_options(TSBDConfig(), 1e-4, 1000)
    unlearned = unlearn_to(chance(reserve), model, reserve, options, 1.25, context).model
    change = weight_change(
        {name: model.get_parameter(name) for name in CONVOLUTIONS},
        {name: unlearned.get_parameter(name) for name in CONVOLUTIONS},
    )

    def success(order, ratio, draw=0):
        pruned, generator = copy.deepcopy(model), torch.Generator().manual_seed(draw)
        masks = reinitialisation_mask(change, ratio, 0.7, order=order, generator=generator)
        zero_weights(pruned, masks)
        return attack_success(pruned)

    def over_ratios(order):
        draws = range(4 if order == "random" else 1)
        ratios = (0.15, 0.2, 0.25, 0.3)
        return mean(success(order, ratio, draw) for ratio in ratios for draw in draws)

    return [over_ratios(order) for order in orders]


def test_the_order_by_weight_change_removes_the_backdoor_and_others_do_not():
    # Over eight victims: 0.16 by weight change (0 to 0.7), 0.5 by chance, 0.9 backwards.
    orders = ("nwc", "random", "reversed")
    rows = [success_after_stage_one(seed, orders) for seed in range(4)]
    by_change, by_chance, backwards = map(mean, zip(*rows, strict=True))
    assert by_change < 0.35
    assert by_chance > by_change + 0.2
    assert backwards > by_change + 0.5


def test_both_stages_together_leave_accuracy_and_no_backdoor():
    before = victim(2)
    assert attack_success(before) > 0.95
    after = defend(before).model
    assert attack_success(after) < 0.2
    assert accuracy(after) > 0.95


def test_stage_one_zeroes_what_it_says_and_touches_nothing_else():
    before = victim(0).state_dict()
    result = defend(victim(0), epochs=0)
    after = result.model.state_dict()
    differing = {name for name in before if not torch.equal(before[name], after[name])}
    assert differing <= set(CONVOLUTIONS)
    zeroed = {name: (after[name] == 0) & (before[name] != 0) for name in CONVOLUTIONS}
    assert sum(int(mask.sum()) for mask in zeroed.values()) == result.details["zeroed_weights"]
    assert all(torch.equal(after[n], before[n].masked_fill(zeroed[n], 0)) for n in CONVOLUTIONS)


def test_the_record_tells_how_unlearning_went():
    result = defend(victim(0), epochs=0)
    details = result.details
    assert details["unlearning_stop"] == "accuracy"
    assert details["unlearning_accuracy"] <= 1 / 4
    growth = TSBDConfig().unlearning_growth
    expected = 1e-4 * growth ** (details["unlearning_epochs"] - 1)
    assert details["unlearning_rate"] == pytest.approx(expected)
    assert (details["layers"], details["neurons"]) == (2, 56)
    assert details["weights"] == 24 * 27 + 32 * 216
    scores = result.tensors
    assert set(scores) == {f"neuron_weight_change.{name}" for name in CONVOLUTIONS}
    assert [len(score) for score in scores.values()] == [24, 32]


def test_without_unlearning_nothing_is_zeroed():
    result = defend(victim(0), max_epochs=0, epochs=0, neuron_ratio=1.0, zero_ratio=1.0)
    assert result.details["zeroed_weights"] == 0
    after = result.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in victim(0).state_dict().items())


def test_unlearning_that_never_reaches_chance_ends_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        result = defend(victim(0), max_epochs=2, epochs=0)
    assert result.details["unlearning_stop"] == "max-epochs"
    assert result.details["unlearning_epochs"] == 2
    assert "unlearning_rate" in caplog.text


def test_a_constant_rate_stays_constant():
    options = {"unlearning_growth": 1.0, "unlearning_rate": 0.003, "max_epochs": 3, "epochs": 0}
    assert defend(victim(0), **options).details["unlearning_rate"] == pytest.approx(0.003)


def test_a_rate_that_makes_weights_infinite_is_refused():
    with pytest.raises(ContractError, match="diverged"):
        defend(victim(0), unlearning_rate=1e30, max_epochs=3, stop_accuracy=0.0)


def test_a_clean_choice_returns_a_model_that_keeps_accuracy():
    options = {"selection": Selection.CLEAN, "grid": (0.05, 0.15), "tolerance": 0.1, "epochs": 5}
    result = defend(victim(0), **options)
    assert result.details["neuron_ratio"] in (0.0, 0.05, 0.15)
    assert accuracy(result.model) > 0.85


def test_where_every_ratio_costs_too_much_nothing_is_zeroed():
    # Without fine-tuning, zeroing everything leaves chance.
    options = {"selection": Selection.CLEAN, "grid": (1.0,), "zero_ratio": 1.0, "epochs": 0}
    result = defend(victim(0), **options)
    assert result.details["neuron_ratio"] == 0.0
    assert result.details["zeroed_weights"] == 0


def test_the_oracle_takes_the_smallest_of_equal_ratios():
    options = {"selection": Selection.ORACLE, "grid": (0.05,), "tolerance": 1.0, "epochs": 0}
    result = defend(victim(0), oracle=True, **options)  # success is 1 whatever is tried
    assert result.details["neuron_ratio"] == 0.0
    assert result.details["selection"] == "oracle"


def test_the_oracle_needs_permission():
    with pytest.raises(OracleNotPermittedError):
        defend(victim(0), selection=Selection.ORACLE, grid=(0.05,), epochs=0, max_epochs=1)


def test_an_empty_reserve_is_refused():
    empty = ImageSet.from_tensors(
        torch.zeros(0, *SHAPE, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), num_classes=4
    )
    with pytest.raises(InputError, match="empty"):
        defend(victim(0), empty)


class Residual(nn.Module):
    """One block with a projection shortcut."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.main = nn.Conv2d(4, 8, 3, padding=1)
        self.skip = nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        hidden = self.stem(images).relu()
        return self.head((self.main(hidden) + self.skip(hidden)).relu().mean(dim=(2, 3)))


class Transformer(nn.Module):
    """One convolution embeds patches, one block works on them."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head((tokens + self.mlp(tokens)).mean(dim=1))


def test_shortcuts_and_head_are_never_ranked():
    found = find_structure(Residual(), SHAPE)
    assert ranked_weights(found, "auto") == ("stem.weight", "main.weight")


def test_a_transformer_is_ranked_by_rows():
    found = find_structure(Transformer(), SHAPE)
    assert set(ranked_weights(found, "auto")) == {
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "mlp.0.weight",
        "mlp.2.weight",
    }
    assert ranked_weights(found, "conv") == ("embed.weight",)


def test_a_transformer_is_repaired():
    torch.manual_seed(0)
    result = defend(Transformer().eval(), epochs=1, neuron_ratio=0.5)
    assert result.details["zeroed_weights"] > 0
    assert all(parameter.isfinite().all() for parameter in result.model.parameters())


def test_a_model_without_neurons_to_rank_is_refused_before_anything_runs():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3 * 16 * 16, 4)

        def forward(self, images):
            return self.head(images.flatten(1))

    with pytest.raises(StructureError, match="tsbd"):
        TSBD(TSBDConfig()).check(find_structure(Linear(), SHAPE))


@pytest.mark.parametrize("grid", [(0.3, 0.1), (0.1, 0.1)])
def test_a_grid_that_does_not_ascend_is_refused(grid):
    with pytest.raises(ValueError, match="ascend"):
        TSBDConfig(grid=grid)


def test_presets_are_valid_configurations():
    [info] = backdoorkit_defenses()
    paper, official = (structure(info.config, info.presets[p]) for p in ("paper", "official"))
    assert (paper.norm, paper.epochs, paper.stop_accuracy) == ("global", 20, None)
    assert (official.norm, official.epochs, official.stop_accuracy) == ("tensor", 21, 0.1)
    assert paper.unlearning_growth == official.unlearning_growth == 1.0
