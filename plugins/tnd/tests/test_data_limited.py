"""DL-TND: its terms and its rule on numbers by hand, its outcome on a backdoor known by hand."""

from __future__ import annotations

import logging

import attrs
import pytest
import torch
from torch import nn

from backdoorkit import Need
from backdoorkit.api import Context, ImageSet
from backdoorkit.hooks.options import structure as configure
from backdoorkit.tasks import DetectionTask
from backdoorkit.testing import (
    PLANTED_CLASSES,
    PLANTED_SHAPE,
    PlantedNetwork,
    planted_context,
    planted_images,
)
from backdoorkit_tnd import DataLimitedConfig, backdoorkit_detectors
from backdoorkit_tnd._data_limited import (
    DataLimitedDetector,
    Scores,
    choose_images,
    judge,
    score_classes,
)
from backdoorkit_tnd._perturbation import Adam, hinge, margins, perturb, search, shrink, single

# The logits of the planted network are small; so is the margin that can be asked of them.
QUICK = DataLimitedConfig(images_per_class=1, rounds=4, margin=2.0)


def frozen(model):
    return model.eval().requires_grad_(False)


def score(model, images, labels, classes=None, options=QUICK):
    classes = torch.arange(PLANTED_CLASSES) if classes is None else torch.tensor(classes)
    context = planted_context("dl-tnd")
    structure = context.structure(model)
    return score_classes(model, structure, images, labels, classes, options, context)


def eight_images():
    data = planted_images(8)
    return data.images.float() / 255, data.labels


# -- building blocks -------------------------------------------------------------------------------


def test_margins_are_to_the_best_other_class():
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 5.0]])
    assert margins(logits, torch.tensor([0, 1])).tolist() == [1.0, 0.0]
    assert margins(logits, torch.tensor([1, 0])).tolist() == [-2.0, -5.0]


def test_the_terms_of_the_universal_loss():
    # Two images of classes 0 and 1, both with margin 20 for their class.
    logits = torch.tensor([[20.0, 0.0, -7.0], [-3.0, 20.0, 0.0]]).expand(2, 2, 3)
    terms = hinge(logits, torch.tensor([0, 1]), torch.tensor([0, 1]), 15.0)
    # Its own class is to stay, which it does by more than is counted; the others are to leave.
    assert terms.tolist() == [[-15.0, 20.0], [20.0, -15.0]]


def test_the_terms_of_single_images_are_towards_the_class():
    logits = torch.tensor([[[20.0, 0.0, -7.0]], [[20.0, 0.0, -7.0]]])
    terms = single(logits, torch.tensor([0, 2]), 15.0)
    assert terms.tolist() == [[-15.0], [27.0]]


@pytest.mark.parametrize(("before", "after"), [(0.3, 0.2), (0.05, 0.0), (1.4, 1.0), (-0.5, 0.0)])
def test_the_proximal_step_shrinks_and_clips(before, after):
    assert float(shrink(torch.tensor(before), 0.1)) == pytest.approx(after)


def test_adam_is_adam():
    start = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    mine, values, parameter = Adam(0.1), start.clone(), start.clone().requires_grad_()
    reference = torch.optim.Adam([parameter], lr=0.1)
    for number in range(5):
        gradient = torch.full_like(start, number - 1.5)
        values = mine.step(values, gradient)
        parameter.grad = gradient
        reference.step()
    torch.testing.assert_close(values, parameter.detach())


def test_no_mask_is_the_image():
    images = torch.rand(3, *PLANTED_SHAPE, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros(2, 1, *PLANTED_SHAPE)
    assert torch.equal(perturb(images, zeros, zeros + 0.5), images.expand(2, 3, -1, -1, -1))


def test_the_search_bisects_by_class_and_keeps_the_smallest_that_works():
    tried = []

    def run(strength):  # works where the strength is at least 2 (class 0), or never (class 1)
        tried.append(strength.tolist())
        mask = strength[:, None, None, None, None].expand(2, 1, 1, 1, 1).clone()
        works = torch.tensor([bool(strength[0] >= 2), False])
        terms = torch.where(works[:, None], -1.0, 1.0).expand(2, 4)
        return mask, mask, terms, works.float()

    found = search(
        run,
        2,
        first=3.0,
        bounds=(1.0, 6.0),
        rounds=3,
        success_share=0.7,
        success_at="end",
        least_area=0.5,
        device=torch.device("cpu"),
    )
    assert tried == [[3.0, 3.0], [2.0, 4.5], [1.5, 5.25]]
    assert found.succeeded.tolist() == [True, False]
    assert found.area.tolist() == [2.0, 5.25]


# -- the rule --------------------------------------------------------------------------------------


def table(similarities, areas, succeeded=None):
    """Three classes, four images of which one is the class's own and counts for nothing."""
    counts = torch.ones(3, 4, dtype=torch.bool)
    counts[:, 0] = False
    works = torch.ones(3) > 0 if succeeded is None else torch.tensor(succeeded)
    nothing = torch.zeros(3, 1, 2, 2)
    return Scores(
        classes=torch.tensor([0, 1, 2]),
        similarities=torch.tensor(similarities),
        counts=counts,
        area=torch.tensor(areas),
        succeeded=works,
        masks=nothing,
        patterns=nothing,
    )


ROWS = [[-1.0, 0.8, 0.9, 1.0], [-1.0, 0.9, 0.99, 1.0], [1.0, 0.1, 0.2, 0.3]]


def test_only_classes_with_about_the_smallest_mask_are_suspects():
    found = judge(table(ROWS, [10.0, 12.0, 10.5]), 4, DataLimitedConfig())
    # Class 1 is more alike, but its mask is larger than 1.1 times the smallest.
    assert found.details["suspects"] == [0, 2]
    assert found.details["flagged"] == [0]
    assert found.score == pytest.approx(0.85)  # the lower quartile of .8, .9, 1
    assert found.details["scores"]["1"] == pytest.approx(0.945)
    assert (found.detected, found.target) == (True, 0)
    assert found.details["without_images"] == [3]
    assert "masks" not in found.tensors  # by label they would be wrong


def test_without_the_gate_all_are_suspects_and_all_that_are_flagged_are_told():
    found = judge(table(ROWS, [10.0, 12.0, 10.5]), 3, DataLimitedConfig(area_factor=0))
    assert found.details["flagged"] == [1, 0]
    assert found.target == 1


def test_a_mask_that_does_not_work_is_no_suspect_and_makes_none():
    found = judge(table(ROWS, [5.0, 12.0, 30.0], [False, True, True]), 3, DataLimitedConfig())
    assert found.details["suspects"] == [1]
    assert found.details["suspect"] == 1
    assert "masks" in found.tensors
    nothing = judge(table(ROWS, [5.0] * 3, [False] * 3), 3, DataLimitedConfig())
    assert (nothing.score, nothing.detected, nothing.target) == (-1.0, False, None)


# -- outcome ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found():
    return score(frozen(PlantedNetwork()), *eight_images())


def test_the_planted_class_has_the_smallest_mask_and_the_same_features(found):
    assert found.succeeded.all()
    assert found.area.argmin() == 0
    assert float(found.area[0]) == pytest.approx(2.0, abs=0.3)
    assert float(found.area[1:].min()) / float(found.area[0]) >= 1.5
    verdict = judge(found, PLANTED_CLASSES, attrs.evolve(QUICK, area_ratio=0.75))
    assert verdict.details["suspects"] == [0]
    assert (verdict.detected, verdict.target) == (True, 0)
    corner = found.masks[0, 0, -2:, -2:].sum() / found.masks[0].sum()
    assert float(corner) > 0.9


def test_in_the_clean_twin_the_class_is_like_the_others():
    found = score(frozen(PlantedNetwork(vote=0.0)), *eight_images())
    assert float(found.area.min() / found.area.median()) > 0.9
    # Any confident target looks alike: without the small mask that would be a verdict.
    assert judge(found, PLANTED_CLASSES, QUICK).score > 0.9
    strict = judge(found, PLANTED_CLASSES, attrs.evolve(QUICK, area_ratio=0.75))
    assert (strict.detected, strict.details["suspects"]) == (False, [])


def test_classes_get_what_they_would_get_alone(found):
    alone = score(frozen(PlantedNetwork()), *eight_images(), classes=[3])
    torch.testing.assert_close(alone.similarities[0], found.similarities[3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alone.masks[0], found.masks[3], rtol=1e-4, atol=1e-4)


def test_the_order_of_the_images_does_not_matter(found):
    images, labels = eight_images()
    order = torch.tensor([3, 1, 7, 0, 2, 5, 4, 6])
    again = score(frozen(PlantedNetwork()), images[order], labels[order], classes=[0])
    torch.testing.assert_close(again.area[0], found.area[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        again.similarities[0], found.similarities[0, order], rtol=1e-3, atol=1e-3
    )


class Constant(nn.Module):
    """All logits are equal, whatever comes in."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, PLANTED_CLASSES)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images):
        return self.head(images.flatten(1))


def test_a_constant_model_ends_without_success_and_without_nan():
    options = attrs.evolve(QUICK, iterations=3, representation="logits")
    found = score(frozen(Constant()), *eight_images(), options=options)
    assert not found.succeeded.any()
    assert found.similarities.isfinite().all()  # of vectors of zeros
    assert judge(found, PLANTED_CLASSES, options).detected is False


# -- the reserve -----------------------------------------------------------------------------------


def test_images_are_drawn_per_class_among_those_that_are_classified_right():
    data = planted_images(40)
    wrong = ImageSet.from_tensors(data.images, data.labels.where(data.labels != 2, 3))
    model, context = frozen(PlantedNetwork()), planted_context("dl-tnd")
    chosen = choose_images(model, wrong, 2, context)
    labels = wrong.labels[chosen]
    assert labels.bincount(minlength=8).tolist() == [2, 2, 0, 2, 2, 2, 2, 2]
    assert torch.equal(data.labels[chosen], labels)  # the right threes, not the twos called three
    assert torch.equal(chosen, choose_images(model, wrong, 2, context))
    assert chosen.tolist() == sorted(chosen.tolist())


def test_a_model_that_knows_one_class_only_gets_no_verdict_and_is_told_so(caplog):
    task = DetectionTask(
        method="dl-tnd",
        num_classes=PLANTED_CLASSES,
        image_shape=PLANTED_SHAPE,
        resources={Need.WEIGHTS: Constant().eval(), Need.CLEAN_SAMPLES: planted_images(16)},
    )
    with caplog.at_level(logging.WARNING):
        found = DataLimitedDetector(QUICK).run(task, planted_context("dl-tnd"))
    assert (found.score, found.detected) == (-1.0, None)
    assert "images of 1 classes" in found.details["no_verdict"]
    assert "no verdict" in caplog.text


def test_every_step_of_every_search_is_taken_and_shown(monkeypatch):
    shown, taken, step = [], [], Adam.step

    def track(self, iterable, label, total=None):
        for item in iterable:
            yield item
            shown.append(label)

    def counted(self, *args):
        taken.append(1)
        return step(self, *args)

    monkeypatch.setattr(Context, "track", track)
    monkeypatch.setattr(Adam, "step", counted)
    options = attrs.evolve(QUICK, iterations=3, images_at_once=8)  # one class at a time
    score(frozen(PlantedNetwork()), *eight_images(), classes=[0, 5], options=options)
    assert shown == ["searching masks of 2 classes"] * 2 * (QUICK.rounds + 1) * 3
    assert len(taken) == 2 * len(shown)  # mask and pattern


def test_presets_are_valid():
    for info in backdoorkit_detectors():
        assert {"official"} <= set(info.presets)
        for preset in info.presets.values():
            configured = attrs.asdict(configure(info.config, preset))
            assert {name: configured[name] for name in preset} == preset
