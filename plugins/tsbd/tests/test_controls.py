"""Controls of both stages: what each does that its plain counterpart does not."""

from __future__ import annotations

import copy
from statistics import mean

import torch

from backdoorkit import Need
from backdoorkit.api import DefenseTask
from backdoorkit.testing import tiny_context, tiny_victim
from backdoorkit_tsbd import TSBDConfig
from backdoorkit_tsbd._defense import TSBD

CONVOLUTIONS = ("network.conv1.weight", "network.conv2.weight")


def defend(*, seed=0, **options):
    victim = tiny_victim()
    task = DefenseTask(
        method="tsbd",
        num_classes=4,
        image_shape=(3, 16, 16),
        resources={
            Need.WEIGHTS: copy.deepcopy(victim.model),
            Need.CLEAN_SAMPLES: victim.reserve,
        },
    )
    options = {"precision": "float32", "unlearning_growth": 2.0, **options}
    return TSBD(TSBDConfig(**options)).run(task, tiny_context("tsbd", seed=seed))


def attack_success(model):
    victim = tiny_victim()
    others = victim.triggered.subset((victim.triggered.labels != victim.target).nonzero().flatten())
    predicted = tiny_context("test").predict(model, others).argmax(dim=1)
    return float((predicted == victim.target).float().mean())


def test_at_full_ratios_every_convolution_is_zeroed_and_nothing_else_is_touched():
    before = tiny_victim().model.state_dict()
    result = defend(neuron_ratio=1.0, zero_ratio=1.0, epochs=0)
    after = result.model.state_dict()
    zeroed = sum(int((after[name] == 0).sum()) for name in CONVOLUTIONS)
    assert zeroed == result.details["zeroed_weights"] > 0.99 * result.details["weights"]
    rest = set(before) - set(CONVOLUTIONS)
    assert {"network.head.weight", "network.bn1.weight", "network.bn1.running_mean"} < rest
    assert all(torch.equal(after[name], before[name]) for name in rest)


def test_plain_fine_tuning_leaves_more_of_the_backdoor_than_the_penalty_does():
    # The order of the paper's table, and of the two norms: none, global, per tensor.
    options = {"neuron_ratio": 0.05, "epochs": 10, "learning_rate": 0.03}
    penalties = ({"blend": 0.0}, {"norm": "global"}, {"norm": "tensor"})
    none, whole, tensor = (
        mean(attack_success(defend(seed=seed, **options, **penalty).model) for seed in range(2))
        for penalty in penalties
    )
    assert none > whole + 0.1
    assert whole > tensor + 0.1
