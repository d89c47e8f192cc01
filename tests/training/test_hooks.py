"""Hooks: when each is called, with what, and what its answer does."""

from __future__ import annotations

import copy
import math

import attrs
import pytest
import torch

from backdoorkit.training import TrainingHooks


class Recorder(TrainingHooks):
    """Notes every call."""

    def __init__(self) -> None:
        self.calls = []

    def transform_batch(self, batch, epoch):
        self.calls.append(f"transform {epoch}")
        return batch

    def loss(self, logits, batch, epoch):
        self.calls.append(f"loss {epoch}")
        return super().loss(logits, batch, epoch)

    def backward(self, model, batch, compute_loss):
        self.calls.append("backward")
        return super().backward(model, batch, compute_loss)

    def after_step(self, model):
        self.calls.append("step")

    def after_epoch(self, model, epoch, metrics):
        self.calls.append(f"epoch {epoch}")
        return False


def test_are_called_in_order(model, train):
    hooks = Recorder()
    train(model, hooks=hooks, epochs=2, batch_size=20)
    step = ["transform {0}", "backward", "loss {0}", "step"]
    expected = [[*step, *step, "epoch {0}"], [*step, *step, "epoch {0}"]]
    assert hooks.calls == [call.format(epoch) for epoch in (0, 1) for call in expected[epoch]]


def test_batches_can_be_made_against_the_model_from_the_first_on(model, train):
    class Worst(TrainingHooks):
        def transform_batch(self, batch, epoch):
            return attrs.evolve(batch, labels=self.model(batch.images).argmin(1))

    (only,) = train(model, hooks=Worst(), epochs=1, batch_size=37).history
    assert only.accuracy == 0  # what it learns is what it holds for the least likely
    assert only.loss > math.log(3)


def test_default_loss_smooths_labels_as_the_options_say(model, train):
    plain = train(copy.deepcopy(model), epochs=1).history[0].loss
    assert train(model, epochs=1, label_smoothing=0.5).history[0].loss != plain


def test_loss_sees_float32_logits_under_bfloat16(model, train):
    types = set()

    class Looks(TrainingHooks):
        def loss(self, logits, batch, epoch):
            types.add((logits.dtype, torch.is_autocast_enabled("cpu")))
            return super().loss(logits, batch, epoch)

    train(model, hooks=Looks(), precision="bfloat16", epochs=1)
    assert types == {(torch.float32, True)}


def test_transformed_labels_are_what_is_learned(model, train):
    class Relabels(TrainingHooks):
        def transform_batch(self, batch, epoch):
            return attrs.evolve(batch, labels=torch.full_like(batch.labels, 2))

    assert train(model, hooks=Relabels(), epochs=5).history[-1].accuracy == 1.0


def test_transformed_batches_may_have_another_size(model, train):
    class Doubles(TrainingHooks):
        def transform_batch(self, batch, epoch):
            return attrs.evolve(
                batch,
                images=torch.cat([batch.images, batch.images]),
                labels=torch.cat([batch.labels, batch.labels]),
                indices=torch.cat([batch.indices, batch.indices]),
            )

    summary = train(model, hooks=Doubles(), epochs=1)
    assert (summary.samples_seen, summary.gradient_steps) == (74, 5)


def test_two_gradients_in_one_step_count_twice_and_see_changed_weights(model, train):
    losses = []

    class Twice(TrainingHooks):
        def backward(self, model, batch, compute_loss):
            first = compute_loss()
            with torch.no_grad():
                model.head.bias.add_(torch.tensor([5.0, 0.0, -5.0]))
            second = compute_loss()
            with torch.no_grad():
                model.head.bias.sub_(torch.tensor([5.0, 0.0, -5.0]))
            second.backward()
            losses.append((first.item(), second.item()))
            return first

    summary = train(model, hooks=Twice(), epochs=1, precision="bfloat16")
    assert (summary.samples_seen, summary.gradient_steps) == (74, 5)
    assert all(abs(first - second) > 0.5 for first, second in losses)


def test_accuracy_is_that_of_the_first_of_two_passes(model, train):
    class SecondIsRight(TrainingHooks):
        def backward(self, model, batch, compute_loss):
            first = compute_loss()
            with torch.no_grad():
                model.head.bias[0] += 100.0
            compute_loss()
            with torch.no_grad():
                model.head.bias[0] -= 100.0
            first.backward()
            return first

        def transform_batch(self, batch, epoch):
            return attrs.evolve(batch, labels=torch.zeros_like(batch.labels))

    with torch.no_grad():
        model.head.bias[1] += 10.0
    history = train(model, hooks=SecondIsRight(), epochs=1, learning_rate=0.0).history
    assert history[0].accuracy == 0.0


def test_gradients_in_another_memory_layout_update_the_right_weights(model, train):
    class Contiguous(TrainingHooks):
        def backward(self, model, batch, compute_loss):
            loss = super().backward(model, batch, compute_loss)
            for parameter in model.parameters():
                parameter.grad = parameter.grad.clone(memory_format=torch.contiguous_format)
            return loss

    other = copy.deepcopy(model)
    train(model)
    train(other, hooks=Contiguous())
    torch.testing.assert_close(other.convolution.weight, model.convolution.weight)


def test_after_step_projects_without_gradients(model, train):
    class Masks(TrainingHooks):
        def after_step(self, model):
            assert not torch.is_grad_enabled()
            model.head.weight[0] = 0.0

    train(model, hooks=Masks())
    assert torch.equal(model.head.weight[0], torch.zeros(4))


def test_a_true_answer_after_an_epoch_stops(model, train):
    class StopsAt(TrainingHooks):
        def after_epoch(self, model, epoch, metrics):
            return epoch == 1

    summary = train(model, hooks=StopsAt(), epochs=5)
    assert (summary.epochs_run, summary.stopped_early, len(summary.history)) == (2, True, 2)


def test_stopping_after_the_last_epoch_is_not_early(model, train):
    class Stops(TrainingHooks):
        def after_epoch(self, model, epoch, metrics):
            return True

    assert not train(model, hooks=Stops(), epochs=1).stopped_early


def test_every_epoch_begins_in_train_mode(model, train):
    modes = []

    class Evaluates(TrainingHooks):
        def transform_batch(self, batch, epoch):
            modes.append(model.training)
            return batch

        def after_epoch(self, model, epoch, metrics):
            model.eval()
            return False

    train(model, hooks=Evaluates(), epochs=2, batch_size=37)
    assert modes == [True, True]


def test_gradients_reach_through_transformed_images(model, train):
    shift = torch.zeros((), requires_grad=True)

    class Shifts(TrainingHooks):
        def transform_batch(self, batch, epoch):
            return attrs.evolve(batch, images=batch.images + shift)

    train(model, hooks=Shifts(), epochs=1)
    assert shift.grad is not None
    assert shift.grad.abs() > 0


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_metrics_carry_the_epochs_last_learning_rate(rate, model, train):
    history = train(model, schedule="constant", learning_rate=rate).history
    assert [metrics.learning_rate for metrics in history] == [rate, rate]
