"""Finding, making and calling: what the framework does with a registry."""

from __future__ import annotations

import logging
import types

import attrs
import pytest

from backdoorkit import Kind, MethodInfo, hookimpl, option
from backdoorkit.contracts import Defense
from backdoorkit.errors import (
    BrokenPluginError,
    ConfigError,
    ContractError,
    InputError,
    UnknownNameError,
)
from backdoorkit.hooks.registry import PluginState, Registry, load_registry, resolve_config


@attrs.frozen(kw_only=True)
class Config:
    ratio: float = option(0.5, ge=0, le=1, help="A share.")
    rounds: int = option(3, ge=1, help="How often.")


class Working(Defense):
    def run(self, task, context): ...


class Unfinished(Defense):
    """Lacks ``run``."""


class Picky(Defense):
    def __init__(self, config):
        raise InputError("ratio and rounds exclude each other")

    def run(self, task, context): ...


class Unrelated: ...


A_FUNCTION = len


def plugin(name="mine", **methods):
    """A plugin object that offers defenses: name -> attribute of this module."""

    def infos():
        return [
            MethodInfo(
                name=key.replace("_", "-"),
                summary="A method.",
                implementation=target if ":" in target else f"{__name__}:{target}",
                config=Config,
                presets={"paper": {"ratio": 0.1, "rounds": 9}},
            )
            for key, target in methods.items()
        ]

    module = types.ModuleType(name)
    module.backdoorkit_defenses = hookimpl(infos, specname="backdoorkit_defenses")
    return module


@pytest.fixture
def registry() -> Registry:
    made = Registry()
    made.register(plugin(tsbd="Working", anp="Working"))
    return made


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """This test module by its name, whatever the import mode."""
    import sys

    monkeypatch.setitem(sys.modules, __name__, types.SimpleNamespace(**globals()))


# -- finding ---------------------------------------------------------------------------------------


def test_a_method_is_found_by_its_name_and_by_its_qualified_name(registry):
    assert registry.find("tsbd").qualified_name == "defense:tsbd"
    assert registry.find("defense:tsbd") is registry.find("tsbd", Kind.DEFENSE)


def test_methods_are_sorted_by_kind_and_name(registry):
    detector = types.ModuleType("scan")
    info = MethodInfo(name="abc", summary="A.", implementation="a:B", config=Config)
    detector.backdoorkit_detectors = hookimpl(lambda: [info], specname="backdoorkit_detectors")
    registry.register(detector)
    names = [method.qualified_name for method in registry.methods()]
    assert names == ["defense:anp", "defense:tsbd", "detector:abc"]
    assert [m.name for m in registry.methods(Kind.DETECTOR)] == ["abc"]


def test_a_misspelt_name_brings_the_nearest(registry):
    with pytest.raises(UnknownNameError, match=r"called 'tsdb'; did you mean 'tsbd'\?$"):
        registry.find("tsdb")


def test_an_unknown_name_asks_whether_its_plugin_is_installed(registry):
    with pytest.raises(UnknownNameError, match="is its plugin installed") as caught:
        registry.find("wanet", Kind.DEFENSE)
    assert "backdoorkit-wanet" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_name_of_another_kind_is_pointed_out(registry):
    with pytest.raises(UnknownNameError, match="there is defense:tsbd"):
        registry.find("tsbd", Kind.ATTACK)


def test_an_unknown_kind_is_refused(registry):
    with pytest.raises(UnknownNameError, match="did you mean 'defense'"):
        registry.find("defence:tsbd")


def test_a_qualified_name_of_the_wrong_kind_is_refused(registry):
    with pytest.raises(InputError, match="of kind 'attack' is wanted"):
        registry.find("defense:tsbd", Kind.ATTACK)


def test_an_ambiguous_name_must_be_qualified(registry):
    both = types.ModuleType("both")
    info = MethodInfo(name="tsbd", summary="A.", implementation="a:B", config=Config)
    both.backdoorkit_detectors = hookimpl(lambda: [info], specname="backdoorkit_detectors")
    registry.register(both)
    with pytest.raises(InputError, match="write defense:tsbd or detector:tsbd"):
        registry.find("tsbd")
    assert registry.find("detector:tsbd").kind is Kind.DETECTOR


def test_the_name_of_a_broken_plugin_brings_its_error(write_plugin):
    entry = write_plugin("wanet", "import no_such_module_anywhere")
    registry = load_registry(entry_points=[entry])
    with pytest.raises(BrokenPluginError) as caught:
        registry.find("attack:wanet")
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert "'wanet' (backdoorkit-wanet 1.2.3) is broken" in message
    assert "No module named 'no_such_module_anywhere'" in message
    assert "\n" not in message


def test_methods_lost_to_a_conflict_bring_the_conflict(write_plugin):
    source = "@hookimpl\ndef backdoorkit_defenses(): return [info('tsbd'), info('own')]"
    other = "@hookimpl\ndef backdoorkit_defenses(): return [info('tsbd')]"
    entries = [write_plugin("aaa", source), write_plugin("tsbd", other)]
    registry = load_registry(entry_points=entries)
    with pytest.raises(BrokenPluginError, match=r"'aaa'.*conflict"):
        registry.find("own")


# -- making ----------------------------------------------------------------------------------------


def test_a_method_is_made_from_its_configuration(registry):
    method = registry.find("tsbd")
    made = registry.create(method, Config(ratio=0.25))
    assert isinstance(made, Working)
    assert made.config == Config(ratio=0.25)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("Missing", ContractError, "which does not exist"),
        ("Unrelated", ContractError, r"derived from backdoorkit\.api\.Defense"),
        ("A_FUNCTION", ContractError, "must be a class"),
        ("Unfinished", ContractError, "abstract"),
        ("Picky", InputError, "exclude each other"),
        ("no_such_module_anywhere:X", BrokenPluginError, "No module named"),
    ],
)
def test_an_implementation_that_breaks_the_contract_is_named(target, error, message, registry):
    registry.register(plugin("bad", bad=target))
    with pytest.raises(error, match=message):
        registry.create(registry.find("bad"), Config())


def test_a_configuration_of_another_class_is_refused(registry):
    with pytest.raises(ContractError, match="takes a Config"):
        registry.create(registry.find("tsbd"), {"ratio": 0.5})


def test_an_implementation_that_exits_does_not_end_the_program(registry, write_plugin):
    write_plugin("exits", "raise SystemExit(1)", module="_plugin_exits")
    registry.register(plugin("bad", bad="_plugin_exits:X"))
    with pytest.raises(BrokenPluginError, match="SystemExit: 1"):
        registry.create(registry.find("bad"), Config())


# -- plugins of this process -----------------------------------------------------------------------


def test_a_faulty_plugin_of_this_process_is_raised(registry):
    with pytest.raises(ContractError, match="implements no hook"):
        registry.register(types.ModuleType("empty"))


def test_a_plugin_of_this_process_may_not_take_a_name(registry):
    with pytest.raises(ContractError, match="defense:tsbd is offered by plugin 'mine' too"):
        registry.register(plugin("thief", tsbd="Working", other="Working"))
    assert [m.name for m in registry.methods()] == ["anp", "tsbd"]


def test_a_plugin_of_this_process_can_be_taken_out(registry):
    registry.unregister("mine")
    assert registry.methods() == ()
    assert registry.plugins == ()
    assert registry.register(plugin(tsbd="Working")).state is PluginState.OK


# -- configurations --------------------------------------------------------------------------------


def test_a_preset_lies_below_what_is_given(registry):
    method = registry.find("tsbd")
    assert resolve_config(method, {"preset": "paper"}) == Config(ratio=0.1, rounds=9)
    assert resolve_config(method, {"preset": "paper", "rounds": 2}) == Config(ratio=0.1, rounds=2)


def test_without_a_preset_the_defaults_hold(registry):
    assert resolve_config(registry.find("tsbd"), {"rounds": 2}) == Config(rounds=2)


def test_an_unknown_preset_is_reported_with_all_other_faults(registry):
    with pytest.raises(ConfigError) as caught:
        resolve_config(registry.find("tsbd"), {"preset": "papr", "ratio": 2}, "defenses[0]")
    assert [issue.path for issue in caught.value.issues] == [
        "defenses[0].preset",
        "defenses[0].ratio",
    ]
    assert "did you mean 'paper'?" in str(caught.value)


# -- lifecycle -------------------------------------------------------------------------------------


class Observer:
    def __init__(self):
        self.seen = []

    @hookimpl
    def backdoorkit_run_begin(self, run):
        self.seen.append(("begin", run))

    @hookimpl(wrapper=True)
    def backdoorkit_step(self, step):
        self.seen.append(("step", step))
        result = yield
        self.seen.append(("result", result))
        return result

    @hookimpl
    def backdoorkit_run_end(self, run, error):
        self.seen.append(("end", run, error))


def test_observers_see_the_whole_run(registry):
    observer = Observer()
    registry.register(observer)
    registry.run_begin("run")
    assert registry.step("run", "s1", lambda run, step: (run, step)) == ("run", "s1")
    registry.run_end("run", None)
    assert observer.seen == [
        ("begin", "run"),
        ("step", "s1"),
        ("result", ("run", "s1")),
        ("end", "run", None),
    ]


class Failing:
    @hookimpl
    def backdoorkit_run_begin(self):
        raise RuntimeError("disk full")

    @hookimpl
    def backdoorkit_run_end(self):
        raise RuntimeError("disk full")


@pytest.mark.parametrize("first", ["failing", "observer"])
def test_a_failing_observer_is_logged_and_the_others_are_told(first, registry, caplog):
    observer = Observer()
    plugins = [("failing", Failing()), ("observer", observer)]
    for name, made in sorted(plugins, key=lambda item: item[0] != first):
        registry.register(made, name)
    with caplog.at_level(logging.WARNING):
        registry.run_begin("run")
        registry.run_end("run", None)
    assert len(observer.seen) == 2
    assert "'failing' failed in backdoorkit_run_begin" in caplog.text
    assert "RuntimeError: disk full" in caplog.text


class Cache:
    @hookimpl
    def backdoorkit_step(self, step):
        return "cached" if step == "known" else None


def test_a_plugin_may_answer_a_step_and_the_core_comes_last(registry):
    registry.register(Cache())
    observer = Observer()
    registry.register(observer)
    assert registry.step("run", "known", lambda run, step: pytest.fail("ran")) == "cached"
    assert registry.step("run", "new", lambda run, step: "made") == "made"
    assert ("result", "cached") in observer.seen


class Guard:
    @hookimpl(wrapper=True)
    def backdoorkit_step(self, step):
        if step == "forbidden":
            raise InputError("not on this machine")
        return (yield)


def test_a_wrapper_may_refuse_a_step(registry):
    registry.register(Guard())
    assert registry.step("run", "fine", lambda run, step: "made") == "made"
    with pytest.raises(InputError, match="not on this machine"):
        registry.step("run", "forbidden", lambda run, step: pytest.fail("ran"))


def test_an_error_of_a_step_reaches_the_caller_unchanged(registry):
    registry.register(Observer())

    def fail(run, step):
        raise ZeroDivisionError("inside")

    with pytest.raises(ZeroDivisionError, match="inside"):
        registry.step("run", "s", fail)


class Forgetful:
    @hookimpl(wrapper=True)
    def backdoorkit_step(self):
        yield


def test_a_wrapper_that_loses_the_result_is_told(registry):
    registry.register(Forgetful())
    with pytest.raises(ContractError, match="must return what its yield gave it"):
        registry.step("run", "s", lambda run, step: "made")


def test_steps_may_nest(registry):
    def outer(run, step):
        return registry.step(run, "inner", lambda run, step: step) + "+" + step

    assert registry.step("run", "outer", outer) == "inner+outer"
