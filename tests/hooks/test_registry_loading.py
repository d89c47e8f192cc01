"""A faulty plugin is recorded as such, and harms no other."""

from __future__ import annotations

import random

import pytest

from backdoorkit.errors import BrokenPluginError
from backdoorkit.hooks.info import Kind
from backdoorkit.hooks.registry import Entry, PluginRecord, PluginState, Registry, load_registry


def defenses(*names):
    listed = ", ".join(f"info({name!r})" for name in names)
    return f"@hookimpl\ndef backdoorkit_defenses():\n    return [{listed}]\n"


FAULTS = {
    "import-error": ("import no_such_module_anywhere", "broken", "no_such_module_anywhere"),
    "system-exit": ("raise SystemExit(7)", "broken", "SystemExit: 7"),
    "base-exception": ("class Stop(BaseException): ...\nraise Stop('now')", "broken", "Stop: now"),
    "syntax-error": ("def", "broken", "SyntaxError"),
    "raising-hook": (
        "@hookimpl\ndef backdoorkit_attacks():\n    raise RuntimeError('two\\nlines')",
        "broken",
        "RuntimeError: two lines",
    ),
    "returns-none": ("@hookimpl\ndef backdoorkit_attacks(): ...", "broken", "not None"),
    "returns-text": ("@hookimpl\ndef backdoorkit_attacks(): return 'x'", "broken", "not 'x'"),
    "returns-info": (
        "@hookimpl\ndef backdoorkit_defenses(): return info('x')",
        "broken",
        "must return a list of MethodInfo",
    ),
    "wrong-items": ("@hookimpl\ndef backdoorkit_models(): return [3]", "broken", "not of 3"),
    "wrong-info": (defenses("Not A Name"), "broken", "lower-case words"),
    "twice": (defenses("same", "same"), "broken", "offers 'same' twice"),
    "reserved": (defenses("none"), "broken", "reserved"),
    "unknown-hook": (
        "@hookimpl\ndef backdoorkit_defences(): return []",
        "broken",
        "backdoorkit_defences",
    ),
    "unknown-argument": (
        "@hookimpl\ndef backdoorkit_run_begin(run, colour): ...",
        "broken",
        "colour",
    ),
    "default-argument": (
        "@hookimpl\ndef backdoorkit_run_begin(run=None): ...",
        "broken",
        "gives its argument 'run' a default",
    ),
    "undecorated": ("def backdoorkit_attacks(): return []", "broken", "lacks the decorator"),
    "empty": ("", "broken", "implements no hook"),
    "contribution-wrapper": (
        "@hookimpl(wrapper=True)\ndef backdoorkit_attacks():\n    return (yield)",
        "broken",
        "is a wrapper",
    ),
    "forbidden-need": (
        "@hookimpl\ndef backdoorkit_defenses():\n"
        "    return [info('peeker', needs={Need.POISON_RECORD})]",
        "broken",
        "peeker needs 'poison-record', which no defense may have",
    ),
    "need-as-text": (
        "@hookimpl\ndef backdoorkit_defenses(): return [info('x', needs={'weights'})]",
        "broken",
        "backdoorkit.Need",
    ),
    "attack-config": (
        "@hookimpl\ndef backdoorkit_attacks(): return [info('x')]",
        "broken",
        "PoisonOptions",
    ),
    "old-api": ("BACKDOORKIT_API = 0\n" + defenses("old"), "incompatible", "contract 0"),
}


def state(registry: Registry, name: str) -> PluginRecord:
    (record,) = [record for record in registry.plugins if record.name == name]
    return record


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_plugin_is_recorded_and_the_others_work(fault, write_plugin):
    source, expected, message = FAULTS[fault]
    entries = [
        write_plugin("a-good", defenses("first")),
        write_plugin(fault, source),
        write_plugin("z-good", defenses("last")),
    ]
    registry = load_registry(entry_points=entries)
    record = state(registry, fault)
    assert record.state == expected
    assert message in record.error
    assert "\n" not in record.error
    assert [m.name for m in registry.methods(Kind.DEFENSE)] == ["first", "last"]


def test_nothing_of_a_faulty_plugin_stays_registered(write_plugin):
    source = """
    calls = []

    @hookimpl
    def backdoorkit_run_begin(run):
        calls.append(run)

    @hookimpl
    def backdoorkit_attacks():
        raise RuntimeError("late")
    """
    entry = write_plugin("half", source)
    registry = load_registry(entry_points=[entry])
    registry.run_begin("run")
    assert entry.load().calls == []


def test_interrupting_the_program_is_not_a_fault_of_the_plugin(write_plugin):
    entry = write_plugin("slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_registry(entry_points=[entry])


def test_standard_output_stays_free_of_what_plugins_print(write_plugin, capsys):
    load_registry(entry_points=[write_plugin("chatty", "print('hello')\n" + defenses("x"))])
    captured = capsys.readouterr()
    assert "hello" not in captured.out
    assert "hello" in captured.err


def test_a_module_that_is_not_installed_is_broken():
    registry = load_registry(entry_points=[Entry("ghost", "no_such_module_anywhere", "d", "1")])
    assert state(registry, "ghost").state is PluginState.BROKEN


def test_an_entry_must_name_a_module(write_plugin):
    entry = write_plugin("good", defenses("x"))
    registry = load_registry(entry_points=[Entry("bad", f"{entry.module}:info", "d", "1")])
    assert "must name a module, not 'plugin_good:info'" in state(registry, "bad").error


def test_of_two_entries_of_one_name_the_namesake_distribution_wins(write_plugin):
    squatter = write_plugin("tsbd", defenses("other"), module="plugin_a", distribution="aaa")
    honest = write_plugin("tsbd", defenses("tsbd"), module="plugin_b")
    registry = load_registry(entry_points=[squatter, honest])
    first, second = [record for record in registry.plugins if record.name == "tsbd"]
    assert (first.distribution, first.state) == ("aaa", PluginState.DUPLICATE)
    assert "backdoorkit-tsbd offers a plugin of that name too" in first.error
    assert (second.distribution, second.state) == ("backdoorkit-tsbd", PluginState.OK)


def test_one_module_under_two_names_is_a_duplicate(write_plugin):
    entry = write_plugin("one", defenses("x"))
    again = Entry("two", entry.module, entry.distribution, entry.version)
    registry = load_registry(entry_points=[again, entry])
    assert state(registry, "one").state is PluginState.OK
    assert state(registry, "two").state is PluginState.DUPLICATE
    assert "'one'" in state(registry, "two").error


def test_of_two_methods_of_one_name_the_namesake_plugin_keeps_it(write_plugin):
    registry = load_registry(
        entry_points=[
            write_plugin("aaa", defenses("tsbd", "own")),
            write_plugin("tsbd", defenses("tsbd")),
        ]
    )
    loser = state(registry, "aaa")
    assert loser.state is PluginState.CONFLICT
    assert loser.error == "defense:tsbd is offered by plugin 'tsbd' too"
    assert [m.qualified_name for m in registry.methods(Kind.DEFENSE)] == ["defense:tsbd"]


def test_methods_of_different_kinds_may_share_a_name(write_plugin):
    source = defenses("x") + "\n@hookimpl\ndef backdoorkit_detectors(): return [info('x')]"
    registry = load_registry(entry_points=[write_plugin("x", source)])
    assert state(registry, "x").methods == ("defense:x", "detector:x")


def test_a_plugin_may_use_hooks_of_a_newer_core_when_it_says_so(write_plugin):
    source = defenses("x") + "@hookimpl(optionalhook=True)\ndef backdoorkit_later(): ..."
    registry = load_registry(entry_points=[write_plugin("new", source)])
    assert state(registry, "new").state is PluginState.OK


def test_blocked_plugins_are_not_imported(write_plugin, monkeypatch):
    entries = [write_plugin(name, "raise RuntimeError('imported')") for name in ("a", "b")]
    monkeypatch.setenv("BACKDOORKIT_DISABLE_PLUGINS", "a, unknown")
    registry = load_registry(entry_points=entries, block=["b"])
    assert {state(registry, name).state for name in "ab"} == {PluginState.BLOCKED}


@pytest.mark.parametrize(("value", "loaded"), [("b", {"b"}), ("a,b", {"a", "b"}), ("", set())])
def test_an_allow_list_keeps_all_others_out(value, loaded, write_plugin, monkeypatch):
    entries = [write_plugin(name, defenses(name)) for name in ("a", "b")]
    monkeypatch.setenv("BACKDOORKIT_PLUGINS", value)
    registry = load_registry(entry_points=entries)
    assert {m.name for m in registry.methods(Kind.DEFENSE)} == loaded


def test_an_explicit_allow_list_comes_before_the_environment(write_plugin, monkeypatch):
    entries = [write_plugin(name, defenses(name)) for name in ("a", "b")]
    monkeypatch.setenv("BACKDOORKIT_PLUGINS", "b")
    registry = load_registry(entry_points=entries, allow=["a"])
    assert {m.name for m in registry.methods(Kind.DEFENSE)} == {"a"}


def test_strict_loading_names_every_faulty_plugin(write_plugin):
    entries = [write_plugin("x", "raise ValueError('one')"), write_plugin("y", "")]
    with pytest.raises(BrokenPluginError, match=r"'x' \(backdoorkit-x 1.2.3\) is broken.*'y'"):
        load_registry(entry_points=entries, strict=True)


def test_strict_loading_accepts_blocked_plugins(write_plugin):
    entries = [write_plugin("x", "raise ValueError('one')")]
    registry = load_registry(entry_points=entries, block=["x"], strict=True)
    assert state(registry, "x").state is PluginState.BLOCKED


def test_the_registry_does_not_depend_on_the_order_of_discovery(write_plugin):
    entries = [write_plugin(name, defenses(name, "shared")) for name in ("b", "c", "a")]
    entries.append(write_plugin("b", defenses("q"), module="plugin_other", distribution="other"))
    entries.append(write_plugin("bad", "raise ValueError"))
    expected = None
    for seed in range(6):
        random.Random(seed).shuffle(entries)
        registry = load_registry(entry_points=entries)
        found = (registry.plugins, [(m.qualified_name, m.plugin) for m in registry.methods()])
        expected = expected or found
        assert found == expected


def test_the_time_that_importing_took_is_recorded(write_plugin):
    entry = write_plugin("slow", "import time\ntime.sleep(0.02)\n" + defenses("x"))
    assert state(load_registry(entry_points=[entry]), "slow").import_ms >= 20


def test_installed_entries_are_found_by_their_distribution(tmp_path, monkeypatch):
    info = tmp_path / "backdoorkit_dummy-4.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: backdoorkit-dummy\nVersion: 4.5\n")
    (info / "entry_points.txt").write_text("[backdoorkit]\ndummy = no_such_module_dummy\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    record = state(load_registry(allow=["dummy"]), "dummy")
    assert (record.distribution, record.version) == ("backdoorkit-dummy", "4.5")
    assert record.state is PluginState.BROKEN


def test_the_core_offers_data_sets_architectures_executors_and_an_observer_by_hooks():
    registry = load_registry(entry_points=[])
    assert {m.distribution for m in registry.methods()} == {"backdoorkit"}
    assert {m.kind for m in registry.methods()} == {
        *(Kind.DATASET, Kind.MODEL, Kind.EXECUTOR, Kind.OBSERVER)
    }
