"""The training loop: known steps, counted work, and what it leaves behind."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from backdoorkit.data.images import ImageSet
from backdoorkit.errors import ContractError, InputError
from backdoorkit.training import EpochMetrics, TrainingHooks, TrainingSummary


class Flat(nn.Module):
    """Softmax regression on all pixels."""

    def __init__(self, weight) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images):
        return images.flatten(1) @ self.weight.T


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_one_step_of_softmax_regression_is_the_one_worked_out_by_hand(train):
    # One white pixel: logits are the weights. Gradient: softmax minus one-hot, here (.75, -.75).
    images = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
    white = ImageSet.from_tensors(images, torch.tensor([1]), num_classes=2)
    model = Flat(torch.tensor([[math.log(3.0)], [0.0]]))
    summary = train(
        model,
        images=white,
        epochs=1,
        learning_rate=0.1,
        schedule="constant",
        momentum=0.0,
        weight_decay=0.0,
    )
    expected = torch.tensor([[math.log(3.0) - 0.075], [0.075]])
    torch.testing.assert_close(model.weight.detach(), expected)
    metrics = EpochMetrics(loss=pytest.approx(math.log(4.0)), accuracy=0.0, learning_rate=0.1)
    assert summary == TrainingSummary(1, False, (metrics,), 1, 1)


@pytest.mark.parametrize(
    ("nesterov", "expected"),
    [
        # v1 = 1.1 * 2 = 2.2, w1 = 1.78; v2 = 0.5 * 2.2 + 1.1 * 1.78 = 3.058, w2 = 1.4742
        (False, 1.4742),
        # w1 = 2 - 0.1 (2.2 + 1.1) = 1.67; v2 = 1.1 + 1.837, w2 = 1.67 - 0.1 (1.837 + 1.4685)
        (True, 1.33945),
    ],
)
def test_momentum_and_weight_decay_are_those_of_the_textbook(nesterov, expected, train):
    class Quadratic(TrainingHooks):
        def loss(self, logits, batch, epoch):
            return 0.5 * logits.square().sum()

    images = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
    white = ImageSet.from_tensors(images, torch.tensor([0]))
    model = Flat(torch.tensor([[2.0]]))
    train(
        model,
        images=white,
        hooks=Quadratic(),
        epochs=2,
        learning_rate=0.1,
        schedule="constant",
        momentum=0.5,
        nesterov=nesterov,
        weight_decay=0.1,
    )
    assert model.weight.item() == pytest.approx(expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_matches_a_plain_loop(optimizer, model, data, train):
    reference = copy.deepcopy(model)
    train(
        model, optimizer=optimizer, epochs=2, learning_rate=0.01, batch_size=37, schedule="constant"
    )
    if optimizer == "sgd":
        plain = torch.optim.SGD(reference.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    else:
        plain = torch.optim.Adam(reference.parameters(), 0.01, weight_decay=5e-4)
    for _ in range(2):
        plain.zero_grad()
        functional.cross_entropy(reference(data.images / 255), data.labels).backward()
        plain.step()
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_learns(model, train):
    history = train(model, epochs=15, learning_rate=0.1).history
    assert history[-1].accuracy > 0.9
    assert history[-1].loss < 0.5 * history[0].loss


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_same_generators_give_the_same_bits(optimizer, precision, model, train):
    model.drop.p = 0.5
    other = copy.deepcopy(model)
    options = {"optimizer": optimizer, "precision": precision, "horizontal_flip": True}
    first = train(model, **options)
    torch.manual_seed(12345)
    assert train(other, **options) == first
    assert same_bits(model, other)


def test_other_generators_give_other_bits(model, train):
    other = copy.deepcopy(model)
    train(model, seed=0)
    train(other, seed=1)
    assert not same_bits(model, other)


def test_torchs_own_generator_is_put_back(model, train):
    before = torch.get_rng_state()
    train(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_zero_epochs_change_nothing(model, train):
    before = copy.deepcopy(model)
    assert train(model, epochs=0) == TrainingSummary()
    assert same_bits(model, before)


def test_counts_images_and_steps(model, train):
    # 37 = 4 x 8 + 5
    summary = train(model, epochs=3)
    assert (summary.samples_seen, summary.gradient_steps, summary.epochs_run) == (111, 15, 3)


def test_a_last_batch_of_one_joins_the_batch_before(model, train):
    sizes = []

    class Sizes(TrainingHooks):
        def transform_batch(self, batch, epoch):
            sizes.append(len(batch.labels))
            return batch

    summary = train(model, hooks=Sizes(), epochs=1, batch_size=12)
    assert sizes == [12, 12, 13]
    assert summary.gradient_steps == 3
    # The schedule knows of three steps: the last of one-cycle has a third of the peak.
    assert summary.history[0].learning_rate == pytest.approx(0.05 / 3)


def test_batches_of_one_on_request(model, train):
    assert train(model, epochs=1, batch_size=1).gradient_steps == 37


def test_only_what_requires_a_gradient_changes(model, train):
    model.convolution.requires_grad_(False)
    before = copy.deepcopy(model)
    train(model)
    assert same_bits(model.convolution, before.convolution)
    assert not same_bits(model.head, before.head)


def test_nothing_to_train_is_refused(model, train):
    with pytest.raises(ContractError, match="none requires a gradient"):
        train(model.requires_grad_(False))


def test_an_empty_set_is_refused(model, data, train):
    nothing = data.subset(torch.tensor([], dtype=torch.int64))
    with pytest.raises(InputError, match="at least one training image"):
        train(model, images=nothing)


def test_nesterov_without_momentum_is_refused(model, train):
    with pytest.raises(InputError, match="momentum > 0"):
        train(model, nesterov=True, momentum=0.0)


def test_divergence_names_the_epoch_and_the_remedy(model, train):
    class Explodes(TrainingHooks):
        def loss(self, logits, batch, epoch):
            return super().loss(logits, batch, epoch) * (math.nan if epoch == 1 else 1.0)

    with pytest.raises(ContractError, match=r"diverged in epoch 2.*lower the learning rate"):
        train(model, hooks=Explodes(), epochs=3)


def test_modes_gradients_and_layout_are_as_before(model, train):
    model.eval()
    model.norm.train()
    train(model)
    assert not model.training
    assert model.norm.training
    assert not model.head.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.convolution.weight.is_contiguous()


def test_they_are_also_put_back_after_an_error(model, train):
    class Fails(TrainingHooks):
        def after_step(self, model):
            raise RuntimeError("on purpose")

    model.eval()
    with pytest.raises(RuntimeError, match="on purpose"):
        train(model, hooks=Fails())
    assert not model.norm.training
    assert model.convolution.weight.is_contiguous()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_batch_norm_statistics_follow_every_batch(model, train):
    train(model, epochs=2)
    assert model.norm.num_batches_tracked == 10
    assert not torch.equal(model.norm.running_mean, torch.zeros(4))


def test_the_host_waits_once_per_epoch(model, train, monkeypatch):
    waits = []
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, _name=name, _original=original, **kwargs):
            waits.append(_name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    train(model, epochs=3)
    # The seed of the layers' randomness is drawn on the CPU; the metrics are what is waited for.
    assert sorted(waits) == ["__int__"] * 3 + ["tolist"] * 3


def test_compile_replaces_the_forward_pass_alone(model, train, monkeypatch):
    compiled = []

    def fake_compile(module):
        def forward(images):
            compiled.append(len(images))
            return module(images)

        return forward

    monkeypatch.setattr(torch, "compile", fake_compile)
    train(model, epochs=1, compile=True)
    assert compiled == [8, 8, 8, 8, 5]


def test_augmentation_is_applied(model, data, train):
    seen = []

    class Looks(TrainingHooks):
        def transform_batch(self, batch, epoch):
            same = (batch.images == data.fetch(batch.indices) / 255).flatten(1).all(dim=1)
            seen.append(same)
            return batch

    train(model, hooks=Looks(), epochs=4, horizontal_flip=True)
    share = torch.cat(seen).float().mean()
    assert 0.3 < share < 0.7


class Shown:
    def __init__(self) -> None:
        self.calls = []

    def start(self, label, total):
        self.calls.append(("start", label, total))
        return 7

    def advance(self, task, amount=1):
        self.calls.append(("advance", task, amount))

    def finish(self, task):
        self.calls.append(("finish", task))


def test_progress_counts_steps_and_always_finishes(model, train):
    shown = Shown()
    train(model, epochs=1, batch_size=20, progress=shown)
    assert shown.calls[0] == ("start", "training", 2)
    assert sum(call[2] for call in shown.calls if call[0] == "advance") == 2
    assert shown.calls[-1] == ("finish", 7)


def test_no_time_left_is_shown_of_a_training_that_ends_early(model, train):
    class Early(TrainingHooks):
        ends_early = True

    shown = Shown()
    train(model, epochs=1, batch_size=20, progress=shown, hooks=Early())
    assert shown.calls[0] == ("start", "training", None)
