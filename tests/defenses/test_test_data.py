"""No defense and no detector gets near test images, triggers, or the record of who was poisoned."""

from __future__ import annotations

import types

import pytest

from backdoorkit import hookimpl
from backdoorkit._progress import SILENT
from backdoorkit.hooks.info import Kind
from backdoorkit.hooks.registry import load_registry
from backdoorkit.pipeline import runner, steps
from backdoorkit.pipeline.plan import StepKind
from backdoorkit.pipeline.recipe import NO_ATTACK, Recipe
from backdoorkit.pipeline.results import NO_DEFENSE
from backdoorkit.pipeline.store import Store
from backdoorkit.pipeline.workshop import Workshop

DEFENDING = (StepKind.DEFEND, StepKind.DETECT)


class TouchedError(Exception):
    """Somebody wanted something of what is nobody's business."""


class Untouchable:
    """Whatever is asked of it, it raises."""

    def __init__(self, what):
        object.__setattr__(self, "_what", what)

    def __getattribute__(self, name):
        raise TouchedError(f"{object.__getattribute__(self, '_what')}: {name}")

    def _touched(self, *_):
        raise TouchedError(object.__getattribute__(self, "_what"))

    __bool__ = __call__ = __getitem__ = __iter__ = __len__ = _touched


class Guarded(Workshop):
    """While it is ``armed`` it gives what defenders must not have as something that raises."""

    armed = False

    def _instead(self, what, genuine):
        return Untouchable(what) if Guarded.armed else genuine()

    def part(self, data, part):
        genuine = super().part
        if part != "test":
            return genuine(data, part)
        return self._instead("test images", lambda: genuine(data, part))

    def whole(self, choice, split):
        genuine = super().whole
        if split != "test":
            return genuine(choice, split)
        return self._instead("test split", lambda: genuine(choice, split))

    def planted_tests(self, victim):
        genuine = super().planted_tests
        if victim.choices["attack"].name == NO_ATTACK:
            return None
        return self._instead("triggered images, wanted labels", lambda: genuine(victim))

    def attack(self, victim):
        genuine = super().attack
        return self._instead("trigger", lambda: genuine(victim))

    def plant(self, victim):
        genuine = super().plant
        return self._instead("trigger", lambda: genuine(victim))

    def poison(self, victim, frozen=None):
        genuine = super().poison
        return self._instead("poison record", lambda: genuine(victim, frozen))

    def training_data(self, victim, frozen=None):
        # The framework itself puts the poisoned set together, for those who train on it.
        armed, Guarded.armed = Guarded.armed, False
        try:
            return super().training_data(victim, frozen)
        finally:
            Guarded.armed = armed


def screen_unguarded(*args, genuine=steps.screen):
    """The framework itself scores test images by an input filter, once its detector is done."""
    armed, Guarded.armed = Guarded.armed, False
    try:
        return genuine(*args)
    finally:
        Guarded.armed = armed


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the digits with a guarded workshop; ``armed`` says in which steps."""
    monkeypatch.setattr(runner, "Workshop", Guarded)
    monkeypatch.setattr(steps, "screen", screen_unguarded)
    plugin = types.SimpleNamespace(steps=DEFENDING)

    @hookimpl(wrapper=True)
    def backdoorkit_step(run, step):
        Guarded.armed = step.kind in plugin.steps
        try:
            return (yield)
        finally:
            Guarded.armed = False

    plugin.backdoorkit_step = backdoorkit_step
    registry = load_registry()
    registry.register(plugin, name="guard")

    def call(*, armed=DEFENDING, **tables):
        plugin.steps = armed
        values = {
            "data": {"name": "digits", "reserve_size": 100},
            "model": {"name": "small-cnn", "width": 4, "stages": 2},
            "train": {"epochs": 1, "precision": "float32"},
            "attacks": [{"name": "badnets"}],
            "metrics": [{"name": "accuracy"}, {"name": "attack-success-rate"}],
            "device": "cpu",
            **tables,
        }
        recipe = Recipe.from_mapping(values, registry)
        return runner.run_recipe(recipe, registry, Store(tmp_path / "store"), progress=SILENT)

    call.registry = registry
    return call


def every(registry, kind, quick):
    return [{"name": method.name, **quick(method)} for method in registry.methods(kind)]


def test_every_defender_does_without(run, quick):
    defenses = every(run.registry, Kind.DEFENSE, quick)
    detectors = every(run.registry, Kind.DETECTOR, quick)
    assert {"abl", "ft", "tsbd"} <= {table["name"] for table in defenses}
    result = run(defenses=defenses, detectors=detectors)
    assert [row.errors for row in result.table.rows if row.errors] == []
    assert not result.failed
    repaired = [row for row in result.table.rows if row.defense != NO_DEFENSE]
    assert len(repaired) == len(defenses)
    assert all(row.mean("ASR") is not None for row in repaired)


def errors(result):
    return [error for row in result.table.rows for error in row.errors]


def test_one_that_looks_at_test_attack_success_would_be_caught(run):
    fp = {"name": "fp", "selection": "oracle", "epochs": 0}
    assert any("TouchedError" in error for error in errors(run(oracle=True, defenses=[fp])))
    assert errors(run(oracle=True, defenses=[fp], armed=())) == []


@pytest.mark.parametrize(
    ("attack", "step", "what"),
    [
        ("none", StepKind.EVALUATE, "test images"),
        ("badnets", StepKind.EVALUATE, "triggered images"),
        ("badnets", StepKind.MEASURE, "poison record"),
    ],
)
def test_metrics_which_do_look_are_caught(run, attack, step, what):
    found = errors(run(armed=(step,), attacks=[{"name": attack}]))
    assert any(f"TouchedError('{what}" in error for error in found)


@pytest.mark.parametrize("name", ["whole", "planted_tests", "attack", "plant", "poison"])
def test_what_is_guarded_is_there(name):
    assert callable(getattr(Workshop, name))
