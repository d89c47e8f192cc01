"""The documentation says what the code does: signatures, options, and examples that run."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import tomllib
import types
from pathlib import Path

import pytest

from backdoorkit.hooks import hookspecs
from backdoorkit.hooks.info import ALLOWED_NEEDS, Kind
from backdoorkit.hooks.registry import Entry, PluginState, Registry, load_registry
from backdoorkit.testing import checks_for, run_checks
from backdoorkit.testing.checks import title

DOCS = Path(__file__).parents[1] / "docs"
HOOKS = (DOCS / "authors" / "hooks.md").read_text(encoding="utf-8")
CONFORMANCE = (DOCS / "authors" / "conformance.md").read_text(encoding="utf-8")
TUTORIAL = (DOCS / "authors" / "writing-a-plugin.md").read_text(encoding="utf-8")

SPECS = {
    name: function
    for name, function in vars(hookspecs).items()
    if name.startswith("backdoorkit_") and inspect.isfunction(function)
}


def code_blocks(text, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


# -- hooks -----------------------------------------------------------------------------------------


def test_there_are_hooks():
    assert len(SPECS) >= 10


@pytest.mark.parametrize("name", SPECS)
def test_every_hook_has_a_heading_with_its_signature(name):
    signature = str(inspect.signature(SPECS[name])).replace("'", "")
    assert f"### `{name}{signature}`\n" in HOOKS


def test_no_heading_names_a_hook_that_is_gone():
    headed = re.findall(r"^### `(backdoorkit_\w+)", HOOKS, re.MULTILINE)
    assert sorted(headed) == sorted(SPECS)


@pytest.mark.parametrize("code", [c for c in code_blocks(HOOKS) if "@hookimpl" in c])
def test_every_example_of_a_hook_is_a_plugin(code):
    module = types.ModuleType("example")
    exec(compile(code, "hooks.md", "exec"), vars(module))
    assert Registry().register(module).state is PluginState.OK


def test_the_table_of_needs_is_the_code_s():
    for kind in (Kind.ATTACK, Kind.ANALYSIS, Kind.METRIC):
        needs = ", ".join(f"`{need}`" for need in needs_in_order(kind))
        assert f"| {kind} | {needs} |" in HOOKS
    assert ALLOWED_NEEDS[Kind.DEFENSE] == ALLOWED_NEEDS[Kind.DETECTOR]
    (row,) = re.findall(r"\| defense, detector \| (.*) \|", HOOKS)
    assert set(re.findall(r"`([\w-]+)`", row)) == set(ALLOWED_NEEDS[Kind.DEFENSE])


def needs_in_order(kind):
    order = list(type(next(iter(ALLOWED_NEEDS[kind]))))
    return sorted(ALLOWED_NEEDS[kind], key=order.index)


def test_every_state_of_a_plugin_is_explained():
    for state in PluginState:
        assert re.search(rf"^\| `{state}` \| .+ \|$", HOOKS, re.MULTILINE)


# -- conformance -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({title(c) for kind in Kind for c in checks_for(kind)}))
def test_every_check_is_listed(name):
    listed = CONFORMANCE.replace("\n", " ")
    one_of_three = re.fullmatch(r"same seed gives the same (weights|verdict|values)", name)
    row = "same seed gives the same weights / verdict / values" if one_of_three else name
    assert f"| {row} |" in listed


# -- pages made from the registry ------------------------------------------------------------------


def load_generate():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    return generate


GENERATE = load_generate()


@pytest.mark.parametrize("page", ["options_page", "presets_page", "architectures_page"])
def test_pages_made_from_the_registry_are_up_to_date(page):
    path = DOCS / "methods" / f"{page.removesuffix('_page')}.md"
    written = path.read_text(encoding="utf-8")
    assert written == getattr(GENERATE, page)(), "run: python docs/generate.py"


def test_the_reason_is_told_for_every_preset_that_a_defender_lacks():
    missing = {
        (method.name, source)
        for method in GENERATE.methods(*GENERATE.DEFENDERS)
        for source in GENERATE.SOURCES
        if source not in method.info.presets
    }
    written = (DOCS / "methods" / "presets.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| (\S+) \| `(\w+)` \| \w.+ \|$", written, re.MULTILINE)
    assert set(told) == missing


def test_a_preset_is_listed_with_what_it_changes_and_only_that():
    (method,) = (m for m in GENERATE.methods(Kind.DEFENSE) if m.name == "anp")
    rows = list(GENERATE.preset_table(method))
    assert rows[0] == "| option | default | `paper` | `official` | `backdoorbench` |"
    assert "| `project` | `true` | `true` | `false` | `false` |" in rows
    assert "| `selection` | `clean` | `fixed` | `fixed` | `oracle` |" in rows
    assert not any(row.startswith("| `epsilon`") for row in rows)


# -- the tutorial ----------------------------------------------------------------------------------


def tutorial_files():
    pairs = re.findall(r"^`([\w./-]+)`\n\n```\w+\n(.*?)```", TUTORIAL, re.MULTILINE | re.DOTALL)
    return dict(pairs)


@pytest.fixture
def tutorial(tmp_path, monkeypatch):
    """The plugin of the tutorial, importable."""
    for name, text in tutorial_files().items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    yield tmp_path
    for module in [name for name in sys.modules if name.startswith("backdoorkit_head_reset")]:
        del sys.modules[module]


def test_the_tutorial_s_plugin_keeps_the_contract(tutorial):
    project = tomllib.loads((tutorial / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ((name, module),) = project["entry-points"]["backdoorkit"].items()
    registry = load_registry(entry_points=[Entry(name, module, project["name"], "0.1.0")])
    outcomes = list(run_checks(registry, registry.find("head-reset")))
    assert [str(outcome) for outcome in outcomes if outcome.failed] == []
    assert sum(outcome.status == "passed" for outcome in outcomes) >= 20


def test_the_tutorial_has_the_files_it_lists():
    assert sorted(tutorial_files()) == [
        "pyproject.toml",
        "src/backdoorkit_head_reset/__init__.py",
        "src/backdoorkit_head_reset/_defense.py",
        "tests/test_conformance.py",
    ]


# -- links -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda p: str(p.relative_to(DOCS)))
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
