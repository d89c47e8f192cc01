"""The checks of records and options find what they are for."""

from __future__ import annotations

import sys

import attrs
import pytest

from backdoorkit import Kind, Need, option
from backdoorkit.api import Defense, DefenseResult
from backdoorkit.hooks.registry import Entry, load_registry
from backdoorkit.testing import CheckStatus, run_checks


class Idle(Defense):
    """Gives the model back as it was."""

    def run(self, task, context):
        return DefenseResult(model=task.model)


@attrs.define(kw_only=True)
class Changeable:
    rounds: int = option(1, ge=1, help="How often.")


@attrs.frozen(kw_only=True)
class Unexplained:
    rounds: int = option(1, ge=1, help="")


@attrs.frozen(kw_only=True)
class Plain:
    rounds: int = 1


@attrs.frozen(kw_only=True)
class Reserved:
    seed: int = option(1, ge=0, help="Which.")


@attrs.frozen(kw_only=True)
class WrongDefault:
    rounds: int = option(1.5, ge=0, help="How often.")


@attrs.frozen(kw_only=True)
class Required:
    target: str = option(help="Whom.")


FAULTS = [
    ("is described", {"summary": "no capital."}, "from a capital to a full stop"),
    ("is described", {"summary": "No stop"}, "from a capital to a full stop"),
    ("is described", {"reference": ""}, "reference is empty"),
    ("is described", {"stage": None}, "stage is missing"),
    ("is described", {"needs": frozenset()}, "needs are empty"),
    ("configuration is frozen", {"config": Changeable}, "rounds can be assigned"),
    ("options are explained", {"config": Unexplained}, "help of rounds"),
    ("options are explained", {"config": Plain}, "must be made by backdoorkit.option()"),
    ("options are explained", {"config": Reserved}, "'seed' is not free"),
    ("configuration survives toml", {"config": WrongDefault}, "must be a whole number"),
    ("presets are valid", {"presets": {"paper": {"rounds": 99}}}, "preset 'paper': rounds"),
    ("implementation can be made", {"implementation": "nowhere_at_all:X"}, "nowhere_at_all"),
]


@pytest.mark.parametrize(("check", "facts", "message"), FAULTS)
def test_a_fault_is_found_and_named(check, facts, message, outcomes):
    outcome = outcomes(Kind.DEFENSE, Idle, **facts)[check]
    assert outcome.failed
    assert message in outcome.message


def test_a_method_that_keeps_the_contract_passes(outcomes):
    found = outcomes(Kind.DEFENSE, Idle)
    assert [o for o in found.values() if o.failed] == []


def test_required_options_come_from_the_caller(outcomes):
    without = outcomes(Kind.DEFENSE, Idle, config=Required)
    assert without["configuration is frozen"].status is CheckStatus.SKIPPED
    given = outcomes(Kind.DEFENSE, Idle, {"target": "x"}, config=Required)
    assert given["configuration is frozen"].status is CheckStatus.PASSED


LIGHT = """
import attrs
from backdoorkit import MethodInfo, Need, Stage, hookimpl, option
{extra}

@attrs.frozen(kw_only=True)
class Config:
    rounds: int = option(1, ge=1, help="How often.")


@hookimpl
def backdoorkit_defenses():
    return [
        MethodInfo(
            name="written",
            summary="A method.",
            implementation="nowhere_at_all:X",
            config=Config,
            needs={{Need.WEIGHTS}},
        )
    ]
"""


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("", ""),
        ("import rich", "imports rich; import it where it is used"),
        ("import time\nwhile time.process_time() < 1.0: pass", "of processor time"),
    ],
)
def test_a_heavy_entry_module_is_found(extra, message, tmp_path, monkeypatch):
    (tmp_path / "light_or_not.py").write_text(LIGHT.format(extra=extra))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "light_or_not", raising=False)
    registry = load_registry(entry_points=[Entry("written", "light_or_not", "d", "1")])
    checks = run_checks(registry, registry.find("written"))
    (outcome,) = [o for o in checks if o.check == "light module imports nothing heavy"]
    assert outcome.failed == bool(message)
    assert message in outcome.message


def test_an_outcome_is_one_line_and_json(outcomes):
    outcome = outcomes(Kind.DEFENSE, Idle, summary="x")["is described"]
    assert str(outcome).startswith("failed   is described: summary must")
    assert outcome.to_json()["status"] == "failed"


def test_needs_are_part_of_the_record(outcomes):
    found = outcomes(Kind.DEFENSE, Idle, needs={Need.CLEAN_SAMPLES})
    assert "asked for 'weights'" in found["runs with what it declares"].message
