"""Each check of analyses fails for one made to break it."""

from __future__ import annotations

import itertools

import matplotlib.image
import pytest

from backdoorkit import Kind, Need
from backdoorkit.api import Analysis, AnalysisResult, new_figure

NEEDS = {Need.WEIGHTS, Need.TRIGGER, Need.POISON_RECORD, Need.CLEAN_TWIN, Need.TEST_DATA}


class Looks(Analysis):
    """A well-behaved analysis."""

    def run(self, task, context):
        success = context.accuracy(task.model, task.plant(task.test))
        figure, (axes,) = new_figure()
        axes.plot([success])
        return AnalysisResult(
            values={"success": success},
            details={"poisoned": int((task.kinds == 1).sum())},
            figures={"success": figure},
            captions={"success": "How often the trigger works."},
        )


class FindsNothing(Looks):
    def run(self, task, context):
        return AnalysisResult(values={})


class LongName(Looks):
    def run(self, task, context):
        return AnalysisResult(values={"how often the trigger works on test images": 1.0})


class NoCaption(Looks):
    def run(self, task, context):
        return AnalysisResult(values={"n": 1}, figures={"empty": new_figure()[0]})


class Fickle(Looks):
    calls = itertools.count()

    def run(self, task, context):
        return AnalysisResult(values={"n": next(self.calls)})


class WritesIntoTheRecord(Looks):
    def run(self, task, context):
        task.kinds[0] ^= 1
        return super().run(task, context)


class NotANumber(Looks):
    def run(self, task, context):
        return AnalysisResult(values={"n": float("inf")})


@pytest.mark.parametrize(
    ("analysis", "check"),
    [
        (FindsNothing, "finds something"),
        (LongName, "finds something"),
        (NoCaption, "figures can be drawn"),
        (Fickle, "same seed gives the same values"),
        (WritesIntoTheRecord, "leaves its inputs alone"),
        (NotANumber, "runs with what it declares"),
    ],
)
def test_an_analysis_that_breaks_the_contract_fails_its_check(analysis, check, outcomes):
    found = outcomes(Kind.ANALYSIS, analysis, needs=NEEDS)
    assert [outcome.check for outcome in found.values() if outcome.failed] == [check]


def test_an_analysis_that_keeps_the_contract_fails_none(outcomes):
    found = outcomes(Kind.ANALYSIS, Looks, needs=NEEDS, stage=None)
    assert [outcome.check for outcome in found.values() if outcome.failed] == []


def test_an_analysis_without_a_reference_is_not_described(outcomes):
    found = outcomes(Kind.ANALYSIS, Looks, needs=NEEDS, reference="")
    assert found["is described"].failed


@pytest.mark.parametrize("kind", [Kind.DEFENSE, Kind.DETECTOR])
@pytest.mark.parametrize("need", [Need.TRIGGER, Need.CLEAN_TWIN, Need.TEST_DATA])
def test_no_defender_may_have_the_truth(kind, need, outcomes):
    with pytest.raises(Exception, match=f"needs '{need}', which no {kind} may have"):
        outcomes(kind, Looks, needs={need})


def test_a_figure_fits_a_phone_and_a_column(tmp_path):
    figure, axes = new_figure(2)
    assert len(axes) == 2
    figure.savefig(tmp_path / "figure.png", dpi=100)
    height, width, _ = matplotlib.image.imread(tmp_path / "figure.png").shape
    assert (width, height) == (500, 600)
