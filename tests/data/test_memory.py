"""How much memory images may take."""

from __future__ import annotations

import pytest

from backdoorkit.data import memory
from backdoorkit.errors import InputError


def test_budget_is_a_quarter_of_the_free_memory(monkeypatch):
    monkeypatch.delenv(memory.BUDGET_VARIABLE, raising=False)
    monkeypatch.setattr(memory, "_host_memory", lambda: 4000)
    assert memory.memory_budget() == 1000
    assert memory.fits_in_memory(1000)
    assert not memory.fits_in_memory(1001)


def test_budget_follows_the_container_where_that_has_less(monkeypatch, tmp_path):
    monkeypatch.delenv(memory.BUDGET_VARIABLE, raising=False)
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("200\n")
    assert memory._container_memory(tmp_path) == 800
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._container_memory(tmp_path) > 2**60
    assert memory._container_memory(tmp_path / "none") > 2**60


def test_budget_can_be_set(monkeypatch):
    monkeypatch.setenv(memory.BUDGET_VARIABLE, "0.5")
    assert memory.memory_budget() == 2**29


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf", ""])
def test_budget_that_is_no_number_is_refused(monkeypatch, text):
    monkeypatch.setenv(memory.BUDGET_VARIABLE, text)
    with pytest.raises(InputError, match="must be a number of GiB"):
        memory.memory_budget()


def test_this_machine_has_some_free_memory(monkeypatch):
    monkeypatch.delenv(memory.BUDGET_VARIABLE, raising=False)
    assert memory.memory_budget() > 2**20
