"""Files are known by what is in them, and read once."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import pytest

from backdoorkit.data import contents
from backdoorkit.data.contents import contents_digest
from backdoorkit.errors import InputError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Names of the files that were read."""
    names: list[str] = []
    read = hashlib.file_digest

    def noted(stream, name):
        names.append(Path(stream.name).name)
        return read(stream, name)

    monkeypatch.setattr(contents.hashlib, "file_digest", noted)
    return names


def write(folder: Path, **texts: str) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return {name: folder / name for name in texts}


def settle(monkeypatch) -> None:
    """As if the files had been lying there for a while."""
    monkeypatch.setattr(contents, "_FRESH", -1.0)


def test_place_and_times_do_not_count(tmp_path):
    first = contents_digest(write(tmp_path / "a", one="1", two="2"))
    moved = write(tmp_path / "b", two="2", one="1")
    os.utime(moved["one"], ns=(1, 1))
    assert contents_digest(moved) == first


@pytest.mark.parametrize(
    "texts", [{"one": "1", "two": "3"}, {"one": "2", "two": "1"}, {"one": "1"}, {"other": "1"}]
)
def test_names_and_contents_count(tmp_path, texts):
    first = contents_digest(write(tmp_path / "a", one="1", two="2"))
    assert contents_digest(write(tmp_path / "b", **texts)) != first


def test_files_that_lie_still_are_read_once(tmp_path, reads, monkeypatch):
    settle(monkeypatch)
    files = write(tmp_path / "a", one="1", two="2")
    assert contents_digest(files) == contents_digest(files)
    assert reads == ["one", "two"]


def test_a_change_shows_though_size_and_time_are_the_same(tmp_path, monkeypatch):
    settle(monkeypatch)
    files = write(tmp_path / "a", one="1")
    os.utime(files["one"], ns=(5, 5))
    first = contents_digest(files)
    files["one"].write_text("2")
    os.utime(files["one"], ns=(5, 5))
    assert contents_digest(files) != first


def test_what_has_just_changed_is_read_again(tmp_path, reads):
    files = write(tmp_path / "a", one="1")
    contents_digest(files)
    contents_digest(files)
    assert reads == ["one", "one"]


@pytest.mark.parametrize("kept", ["", "0" * 63, "\xff" * 64])
def test_a_damaged_memory_is_not_used(tmp_path, reads, monkeypatch, kept):
    settle(monkeypatch)
    files = write(tmp_path / "a", one="1")
    first = contents_digest(files)
    (memory,) = (tmp_path / "cache" / "backdoorkit" / "contents").iterdir()
    memory.write_text(kept, encoding="latin-1")
    assert contents_digest(files) == first
    assert reads == ["one", "one"]
    assert memory.read_text() == first


def test_nothing_is_lost_where_nothing_can_be_kept(tmp_path, reads, monkeypatch):
    settle(monkeypatch)
    (tmp_path / "cache").write_text("not a folder")
    files = write(tmp_path / "a", one="1")
    assert contents_digest(files) == contents_digest(files)
    assert reads == ["one", "one"]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    files = write(tmp_path / "a", one="1", two="2")
    files["two"].unlink()
    with pytest.raises(InputError, match=r"file .*two cannot be read: No such file"):
        contents_digest(files)
    files["two"].mkdir()
    with pytest.raises(InputError, match=r"file .*two cannot be read: Is a directory"):
        contents_digest(files)


def test_reading_much_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(contents, "_MUCH", 0)
    with caplog.at_level(logging.WARNING):
        contents_digest(write(tmp_path / "a", one="1"))
    assert "images once" in caplog.text
