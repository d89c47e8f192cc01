"""Tables of published figures: offered by plugins, read when they are shown, checked then."""

from __future__ import annotations

import pytest

from backdoorkit import PublishedTable, hookimpl
from backdoorkit.errors import ContractError, UnknownNameError
from backdoorkit.hooks.published import read_published
from backdoorkit.hooks.registry import PluginState, Registry, load_registry

FIGURES = """
source = "Nobody (Nowhere 2020), Table 1"
setting = "ten images"
columns = ["ACC", "ASR", "DER"]
corrections = ["mine on patch: 2, not 3"]
[figures.patch]
none = [90.5, 99]
mine = [89, 2, 98.0]
"""


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Write a file of figures and return the record that names it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / f"figures_{tmp_path.name.replace('-', '_')}"
    folder.mkdir()
    (folder / "__init__.py").touch()

    def write(text=FIGURES, name="mine-table1"):
        (folder / "some.toml").write_text(text, encoding="utf-8")
        return PublishedTable(name=name, resource=f"{folder.name}:some.toml")

    return write


def offering(*tables):
    class Plugin:
        @staticmethod
        @hookimpl
        def backdoorkit_published_tables():
            return tables

    return Plugin


def test_a_row_is_found_by_attack_and_defense(table):
    figures = read_published(table())
    assert figures.cell("patch", "mine") == {"ACC": 89.0, "ASR": 2.0, "DER": 98.0}
    assert figures.cell("patch", "none") == {"ACC": 90.5, "ASR": 99.0}
    assert figures.cell("patch", "other") is None
    assert figures.cell("other", "mine") is None
    assert figures.corrections == ("mine on patch: 2, not 3",)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('source = "Nobody (Nowhere 2020), Table 1"', "", "source must be text, not None"),
        ('columns = ["ACC", "ASR", "DER"]', "columns = []", "columns must name each column once"),
        ('"ASR"', '"ACC"', "columns must name each column once"),
        ("[figures.patch]", "[rows.patch]", "unknown key 'rows'"),
        ("[89, 2, 98.0]", "[89, 2, 98.0, 1]", "figures.patch.mine must be a list of up to 3"),
        ("[89, 2, 98.0]", "[]", "figures.patch.mine must be a list of up to 3"),
        ("[89, 2, 98.0]", "[89, 120]", "figures.patch.mine: 120 is no percentage"),
        ("[89, 2, 98.0]", "[89, nan]", "nan is no percentage"),
        ("[89, 2, 98.0]", "[true]", "True is no percentage"),
        ("[89, 2, 98.0]", "[89, ", "Invalid value"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_name(table, old, new, problem):
    assert old in FIGURES
    with pytest.raises(ContractError, match=r"'mine-table1' \(figures_.*:some.toml\)") as caught:
        read_published(table(FIGURES.replace(old, new)))
    assert problem in str(caught.value)


def test_a_missing_file_or_package_is_said():
    missing = PublishedTable(name="a", resource="backdoorkit:missing.toml")
    with pytest.raises(ContractError, match="the file is missing; is it in the package's data"):
        read_published(missing)
    with pytest.raises(ContractError, match="package 'no_such_package' cannot be imported"):
        read_published(PublishedTable(name="a", resource="no_such_package:a.toml"))


@pytest.mark.parametrize(
    ("name", "resource"), [("Table 1", "a:b.toml"), ("a", "b.toml"), ("a", "a:../b.toml")]
)
def test_a_record_is_checked_when_it_is_made(name, resource):
    with pytest.raises(ValueError, match="must"):
        PublishedTable(name=name, resource=resource)


def test_the_registry_knows_tables_by_name_and_reads_none(table):
    registry = Registry()
    broken = PublishedTable(name="z", resource="no_such_package:z.toml")
    record = registry.register(offering(table(), broken), name="mine")
    assert record.published == ("mine-table1", "z")
    assert [found.name for found in registry.published_tables()] == ["mine-table1", "z"]
    assert registry.find_published("mine-table1").plugin == "mine"
    with pytest.raises(UnknownNameError, match="did you mean 'mine-table1'"):
        registry.find_published("mine-tabel1")
    registry.unregister("mine")
    assert registry.published_tables() == ()


def test_of_two_plugins_one_name_is_refused_to_the_second(table):
    registry = Registry()
    registry.register(offering(table()), name="first")
    with pytest.raises(ContractError, match="published:mine-table1 is offered by plugin 'first'"):
        registry.register(offering(table()), name="second")
    assert len(registry.published_tables()) == 1


def test_anything_else_from_the_hook_sets_the_plugin_aside(write_plugin):
    entry = write_plugin("mine", "@hookimpl\ndef backdoorkit_published_tables():\n    return [1]")
    (record,) = (r for r in load_registry(entry_points=[entry]).plugins if r.name == "mine")
    assert record.state is PluginState.BROKEN
    assert "must return a list of PublishedTable, not 1" in record.error
