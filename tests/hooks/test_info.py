"""A method's record refuses what would only fail later."""

from __future__ import annotations

import attrs
import pytest

from backdoorkit import Kind, MethodInfo, Need, Stage, option
from backdoorkit.hooks.info import ALLOWED_NEEDS


@attrs.frozen(kw_only=True)
class Config:
    ratio: float = option(0.5, help="A share.")


def info(**facts):
    values = {"name": "x", "summary": "A.", "implementation": "a.b:C", "config": Config}
    return MethodInfo(**(values | facts))


@pytest.mark.parametrize("name", ["tsbd", "fine-pruning", "resnet-18", "a1-b2"])
def test_names_are_lower_case_words(name):
    assert info(name=name).name == name


@pytest.mark.parametrize("name", ["TSBD", "fine_pruning", "-x", "x-", "a--b", "a b", "", "a:b", 3])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="lower-case words"):
        info(name=name)


@pytest.mark.parametrize("target", ["module", "a.b:", ":C", "a.b:C.d", "a-b:C", None])
def test_an_implementation_must_name_module_and_class(target):
    with pytest.raises(ValueError, match=r"package\.module:Class"):
        info(implementation=target)


@pytest.mark.parametrize("config", [object, 3, Config()])
def test_the_configuration_must_be_an_attrs_class(config):
    with pytest.raises(ValueError, match="frozen attrs class"):
        info(config=config)


def test_a_stage_must_be_one_of_the_life_cycle():
    assert info(stage=Stage.DATA).stage is Stage.DATA
    with pytest.raises(TypeError):
        info(stage="data")


def test_needs_become_a_set():
    assert info(needs=[Need.WEIGHTS, Need.WEIGHTS]).needs == {Need.WEIGHTS}


def test_no_defender_may_learn_which_samples_are_poisoned():
    for kind in (Kind.DEFENSE, Kind.DETECTOR):
        assert Need.POISON_RECORD not in ALLOWED_NEEDS[kind]
        assert Need.PREDICTIONS not in ALLOWED_NEEDS[kind]


def test_every_kind_says_what_it_may_need():
    assert set(ALLOWED_NEEDS) == set(Kind)
