"""The evaluation pass: what is kept, which images count, and what is left untouched."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import nn

from backdoorkit.data.images import ImageSet
from backdoorkit.errors import ContractError, InputError
from backdoorkit.evaluation import Evaluation, Predictions, accuracy, evaluate, predict

CPU = torch.device("cpu")


def predictions(predicted, labels, targets=None):
    logits = nn.functional.one_hot(torch.tensor(predicted), 3).float()
    return Predictions(
        logits=logits,
        labels=torch.tensor(labels),
        ids=torch.arange(len(labels)),
        targets=None if targets is None else torch.tensor(targets),
    )


def test_eligible_images_are_those_not_of_their_target():
    # Class 0 is the target; ids 0 and 4 are of it and do not count.
    triggered = predictions([0, 0, 0, 2, 1, 1], [0, 1, 2, 2, 0, 2], [0] * 6)
    assert triggered.eligible.tolist() == [False, True, True, True, False, True]
    assert int((triggered.hits & triggered.eligible).sum()) == 2
    assert int((triggered.correct & triggered.eligible).sum()) == 1


def test_all_count_where_every_class_has_another_target():
    triggered = predictions([1, 2, 0], [0, 1, 2], [1, 2, 0])
    assert triggered.eligible.all()
    assert triggered.hits.all()


def test_clean_predictions_have_no_target():
    with pytest.raises(ContractError, match="no attacker's target"):
        _ = predictions([0], [0]).hits


def test_ties_go_to_the_lowest_class():
    flat = Predictions(logits=torch.zeros(1, 3), labels=torch.tensor([0]), ids=torch.tensor([0]))
    assert flat.predicted.tolist() == [0]


@pytest.mark.parametrize(
    ("field", "shape", "message"), [("labels", 3, "labels of shape"), ("ids", 1, "ids of shape")]
)
def test_shapes_are_checked(field, shape, message):
    good = predictions([0, 1], [0, 1])
    with pytest.raises(ContractError, match=message):
        attrs.evolve(good, **{field: torch.zeros(shape, dtype=torch.int64)})


def test_logits_are_two_dimensional():
    with pytest.raises(ContractError, match="logits N x K"):
        attrs.evolve(predictions([0], [0]), logits=torch.zeros(1))


def test_predict_equals_a_plain_eval_pass(model, data):
    expected = model.eval()(data.images / 255)
    model.train()
    torch.testing.assert_close(predict(model, data, device=CPU), expected.detach())


def test_results_hardly_depend_on_the_batches(model, data):
    whole = predict(model, data, device=CPU, batch_size=37)
    parts = predict(model, data, device=CPU, batch_size=5)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)


def test_prediction_is_in_order_of_the_positions(model, data):
    reversed_positions = torch.arange(36, -1, -1)
    backwards = predict(model, data.subset(reversed_positions), device=CPU)
    torch.testing.assert_close(
        backwards.flip(0), predict(model, data, device=CPU), rtol=0, atol=1e-6
    )


def test_predict_leaves_modes_and_statistics(model, data):
    model.train()
    model.norm.eval()
    before = model.norm.running_mean.clone()
    predict(model, data, device=CPU)
    assert model.training
    assert model.head.training
    assert not model.norm.training
    assert torch.equal(model.norm.running_mean, before)


def test_predict_ignores_a_surrounding_autocast(model, data):
    expected = predict(model, data, device=CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(predict(model, data, device=CPU), expected)


def test_predicted_logits_may_be_used_in_gradient_computations(model, data):
    logits = predict(model, data, device=CPU)
    scale = torch.ones((), requires_grad=True)
    (logits * scale).sum().backward()
    assert scale.grad == pytest.approx(float(logits.sum()), rel=1e-4)


def test_large_images_come_in_small_batches():
    sizes = []

    class Looks(nn.Module):
        def forward(self, images):
            sizes.append(len(images))
            return images.flatten(1)[:, :2]

    images = torch.zeros(9, 1, 224, 224, dtype=torch.uint8)
    large = ImageSet.from_tensors(images, torch.zeros(9, dtype=torch.int64))
    predict(Looks(), large, device=CPU)
    assert sizes == [2, 2, 2, 2, 1]


def test_an_empty_set_is_refused(model, data):
    with pytest.raises(InputError, match="at least one image"):
        predict(model, data.subset(torch.tensor([], dtype=torch.int64)), device=CPU)


def test_accuracy_is_the_share_predicted_as_labelled(data):
    class Brightness(nn.Module):
        """Knows the three classes of the test data, and takes the third for the second."""

        def forward(self, images):
            level = images.mean(dim=(1, 2, 3)) * 255
            return torch.stack([level < 70, (level >= 70), level < 0], dim=1).float()

    counts = torch.bincount(data.labels)
    expected = float((counts[0] + counts[1]) / len(data))
    assert accuracy(Brightness(), data, device=CPU) == pytest.approx(expected)


def evaluated(model, data):
    return evaluate(
        model,
        data,
        data.replaced(torch.arange(37), 255 - data.images, data.labels),
        targets=torch.zeros(37, dtype=torch.int64),
        device=CPU,
        label_map="all-to-one",
        target=0,
        facts={"seconds": 1.5},
    )


def test_evaluate_keeps_all_images_of_both_sets(model, data):
    evaluation = evaluated(model, data)
    assert evaluation.num_classes == 3
    assert len(evaluation.clean) == len(evaluation.triggered) == 37
    assert torch.equal(evaluation.clean.labels, data.labels)
    assert torch.equal(evaluation.triggered.ids, evaluation.clean.ids)
    assert not torch.equal(evaluation.triggered.logits, evaluation.clean.logits)
    assert int(evaluation.triggered.eligible.sum()) == int((data.labels != 0).sum())


def test_evaluations_survive_storing(model, data):
    evaluation = evaluated(model, data)
    tensors = evaluation.to_tensors()
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    again = Evaluation.from_tensors(tensors, evaluation.to_facts())
    assert again.to_facts() == evaluation.to_facts()
    assert again.to_tensors().keys() == tensors.keys()
    assert all(torch.equal(again.to_tensors()[name], tensors[name]) for name in tensors)


def test_without_an_attack_there_is_nothing_triggered(model, data):
    evaluation = evaluate(model, data, device=CPU)
    again = Evaluation.from_tensors(evaluation.to_tensors(), evaluation.to_facts())
    assert again.triggered is None
    assert again.label_map is None


def test_stored_predictions_must_be_complete(model, data):
    tensors = evaluated(model, data).to_tensors()
    del tensors["triggered.labels"]
    with pytest.raises(InputError, match=r"lack triggered\.labels"):
        Evaluation.from_tensors(tensors, {"num_classes": 3})


def test_triggered_images_need_targets(model, data):
    with pytest.raises(ContractError, match="go together"):
        evaluate(model, data, data, device=CPU)


def test_a_model_with_damaged_weights_is_refused(model, data):
    nn.init.constant_(model.head.weight, float("nan"))
    with pytest.raises(ContractError, match="not finite"):
        evaluate(model, data, device=CPU)
