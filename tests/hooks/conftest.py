"""Plugins written to a folder for one test."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from backdoorkit.hooks.registry import Entry

if TYPE_CHECKING:
    from pathlib import Path

WritePlugin = Callable[..., Entry]

HEAD = """
import attrs
import backdoorkit
from backdoorkit import Kind, MethodInfo, Need, hookimpl, option


@attrs.frozen(kw_only=True)
class Config:
    ratio: float = option(0.5, ge=0, le=1, help="A share.")


def info(name, **facts):
    facts = {"summary": "A method.", "config": Config, "implementation": "nowhere:Nothing"} | facts
    return MethodInfo(name=name, **facts)
"""


@pytest.fixture
def write_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WritePlugin]:
    """Writes a light module and returns its entry; its modules are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("BACKDOORKIT_PLUGINS", raising=False)
    monkeypatch.delenv("BACKDOORKIT_DISABLE_PLUGINS", raising=False)
    before = set(sys.modules)

    def write(name: str, source: str, *, module: str = "", distribution: str = "") -> Entry:
        module = module or "plugin_" + name.replace("-", "_")
        body = HEAD + textwrap.dedent(source)
        (tmp_path / f"{module}.py").write_text(body, encoding="utf-8")
        return Entry(name, module, distribution or f"backdoorkit-{name}", "1.2.3")

    yield write
    for module in set(sys.modules) - before:
        if module.startswith(("plugin_", "_plugin_")):
            del sys.modules[module]
