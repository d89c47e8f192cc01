"""Every distribution of this repository says in its metadata what it must."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))


def metadata(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(params=PLUGINS, ids=lambda path: path.name)
def plugin(request):
    return request.param


def test_there_are_plugins():
    assert len(PLUGINS) >= 5


def test_a_plugin_is_named_after_its_folder(plugin):
    project = metadata(plugin)["project"]
    assert project["name"] == f"backdoorkit-{plugin.name}"
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["description"].endswith(".") or project["description"]


def test_a_plugin_has_one_entry_named_after_it(plugin):
    entries = metadata(plugin)["project"]["entry-points"]["backdoorkit"]
    module = f"backdoorkit_{plugin.name.replace('-', '_')}"
    assert entries == {plugin.name: module}
    assert (plugin / "src" / module / "__init__.py").is_file()


def test_a_plugin_bounds_the_core(plugin):
    dependencies = metadata(plugin)["project"]["dependencies"]
    assert "backdoorkit>=0.1,<0.2" in dependencies
    names = {re.split(r"[<>=\[; ]", dependency)[0] for dependency in dependencies}
    assert not any(name.startswith("backdoorkit-") for name in names)
    assert "torch" not in names  # comes with the core, in one place


def test_a_plugin_needs_the_core_s_python(plugin):
    wanted = metadata(ROOT)["project"]["requires-python"]
    assert metadata(plugin)["project"]["requires-python"] == wanted


def test_a_plugin_is_licensed_typed_and_explained(plugin):
    project = metadata(plugin)["project"]
    assert project["license"] == "Apache-2.0"
    assert (plugin / project["readme"]).read_text(encoding="utf-8").startswith("# ")
    # Building leaves an egg-info folder beside the package.
    (package,) = (path.parent for path in (plugin / "src").glob("backdoorkit_*/__init__.py"))
    assert (package / "py.typed").is_file()
    data = metadata(plugin)["tool"]["setuptools"]["package-data"]
    assert "py.typed" in data[package.name]


def test_a_plugin_takes_the_core_of_this_checkout_with_uv(plugin):
    assert metadata(plugin)["tool"]["uv"]["sources"]["backdoorkit"] == {"workspace": True}


def test_a_plugin_imports_of_the_core_only_what_is_public(plugin):
    private = re.compile(r"^\s*(?:from|import)\s+(backdoorkit(?:\.[\w.]+)?)\b", re.MULTILINE)
    for path in (plugin / "src").rglob("*.py"):
        imported = set(private.findall(path.read_text(encoding="utf-8")))
        assert imported <= {"backdoorkit", "backdoorkit.api", "backdoorkit.executing"}, path


def test_a_plugin_has_tests(plugin):
    assert list((plugin / "tests").glob("test_*.py"))


def test_no_package_names_a_plugin_where_pip_would_fetch_it():
    # Names that are not registered could be taken by anybody.
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "backdoorkit-" not in text


def test_the_core_ships_no_method():
    core = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "core").rglob("*.py"))
    assert not re.search(r"^\s*(from|import)\s+backdoorkit_", core, re.MULTILINE)


def test_the_core_is_typed_and_licensed():
    project = metadata(ROOT)["project"]
    assert project["license"] == "Apache-2.0"
    assert (ROOT / "LICENSE").is_file()
    assert (ROOT / "core/backdoorkit/py.typed").is_file()
    assert project["scripts"] == {"backdoorkit": "backdoorkit.cli:main"}


def test_versions_agree():
    import backdoorkit

    assert metadata(ROOT)["project"]["version"] == backdoorkit.__version__
