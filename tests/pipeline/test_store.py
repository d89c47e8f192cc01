"""The store: whole artifacts or none, whatever happens to the processes and files around it."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import time

import pytest

from backdoorkit.errors import DamagedArtifactError, InputError
from backdoorkit.pipeline.keys import content_key
from backdoorkit.pipeline.store import MANIFEST, Store, StoreError

KEY = content_key(step=1)
OTHER = content_key(step=2)


def make(store, key=KEY, content=b"weights", facts=None):
    with store.create("victim", key) as draft:
        draft.write_bytes("model.bin", content)
        draft.write_json("deep/metrics.json", {"ACC": 0.5})
        draft.facts.update(facts or {"label": "train"})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def drafts(store):
    return list((store.root / "drafts").iterdir())


def test_what_was_made_is_found_again(store):
    assert store.get("victim", KEY) is None
    make(store)
    artifact = Store(store.root).get("victim", KEY)
    assert artifact.path == store.root / "artifacts" / "victim" / KEY[:24]
    assert artifact.file("model.bin").read_bytes() == b"weights"
    assert artifact.read_json("deep/metrics.json") == {"ACC": 0.5}
    assert artifact.facts == {"label": "train"}
    assert store.get("victim", OTHER) is None
    assert store.get("data", KEY) is None
    assert drafts(store) == []


def test_a_file_that_is_not_there_is_named(store):
    make(store)
    with pytest.raises(DamagedArtifactError, match=r"no file 'x'.*deep/metrics.json, model.bin"):
        store.get("victim", KEY).file("x")


def test_nothing_is_left_of_a_draft_whose_block_raises(store):
    with pytest.raises(TypeError, match="set"):  # facts that are no JSON
        make(store, facts={"layers": {1}})
    assert store.get("victim", KEY) is None
    assert drafts(store) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "model.bin").write_bytes(b"wEights"),
        lambda path: (path / "model.bin").write_bytes(b"w"),
        lambda path: (path / "model.bin").unlink(),
        lambda path: (path / MANIFEST).unlink(),
        lambda path: (path / MANIFEST).write_text("{"),
        lambda path: (path / MANIFEST).write_text("[]"),
        lambda path: (path / MANIFEST).write_text(
            (path / MANIFEST).read_text().replace('"train"', '"drain"')
        ),
    ],
    ids=["changed", "shortened", "removed", "no-manifest", "no-json", "no-table", "facts-changed"],
)
def test_a_damaged_artifact_is_set_aside_with_a_warning_and_made_again(store, caplog, damage):
    make(store)
    damage(store.get("victim", KEY).path)
    with caplog.at_level(logging.WARNING):
        assert store.get("victim", KEY) is None
    assert "is damaged" in caplog.text
    assert len(list((store.root / "damaged").iterdir())) == 1
    make(store)
    assert store.get("victim", KEY).file("model.bin").read_bytes() == b"weights"


def test_an_artifact_of_another_key_is_not_taken_for_this_one(store):
    make(store)
    store.get("victim", KEY).path.rename(store.root / "artifacts" / "victim" / OTHER[:24])
    assert store.get("victim", OTHER) is None


def test_a_manifest_cannot_name_files_outside(store, tmp_path):
    make(store)
    path = store.get("victim", KEY).path / MANIFEST
    from backdoorkit.pipeline.store import _digest

    manifest = json.loads(path.read_text())
    manifest["files"] = {"../../../../secret": manifest["files"]["model.bin"]}
    del manifest["digest"]
    path.write_text(json.dumps({**manifest, "digest": _digest(manifest)}))
    (tmp_path / "secret").write_bytes(b"weights")
    assert store.get("victim", KEY) is None


def test_files_are_read_for_their_checksum_once_per_process(store, monkeypatch):
    make(store)
    assert store.get("victim", KEY) is not None
    monkeypatch.setattr("backdoorkit.pipeline.store._compare", lambda *_: 1 / 0)
    assert store.get("victim", KEY) is not None
    with pytest.raises(ZeroDivisionError):
        Store(store.root).get("victim", KEY)


def test_the_first_of_two_makers_wins(store):
    with store.create("victim", KEY) as late:
        make(store, content=b"first")
        late.write_bytes("model.bin", b"second")
    assert store.get("victim", KEY).file("model.bin").read_bytes() == b"first"
    assert drafts(store) == []


def test_a_damaged_artifact_of_another_maker_does_not_win(store):
    with store.create("victim", KEY) as late:
        make(store, content=b"first")
        (store.root / "artifacts" / "victim" / KEY[:24] / "model.bin").write_bytes(b"fIrst")
        late.write_bytes("model.bin", b"second")
    assert store.get("victim", KEY).file("model.bin").read_bytes() == b"second"


# -- other processes -------------------------------------------------------------------------------

WRITER = """
import sys, time
from pathlib import Path
from backdoorkit.pipeline.store import Store
root, key, content, go = sys.argv[1:]
with Store(root).create("victim", key) as draft:
    draft.write_bytes("model.bin", content.encode())
    print("writing", flush=True)
    while not Path(go).exists():
        time.sleep(0.005)
"""


def writer(store, content, go):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(store.root), KEY, content, str(go)],
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"writing\n"
    return process


def test_a_killed_writer_leaves_the_store_usable(store, tmp_path):
    process = writer(store, "half", tmp_path / "never")
    process.kill()
    process.communicate()
    assert len(drafts(store)) == 1
    assert store.get("victim", KEY) is None
    make(store)
    assert store.get("victim", KEY) is not None
    assert drafts(store) == []


def test_the_draft_of_a_living_process_is_left_alone(store, tmp_path):
    go = tmp_path / "go"
    process = writer(store, "theirs", go)
    make(store, OTHER)
    assert len(drafts(store)) == 1
    go.touch()
    process.communicate()
    assert process.returncode == 0
    assert store.get("victim", KEY).file("model.bin").read_bytes() == b"theirs"


def test_many_makers_at_once_leave_one_whole_artifact(store, tmp_path):
    go = tmp_path / "go"
    processes = [writer(store, "same", go) for _ in range(3)]
    go.touch()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert store.get("victim", KEY).file("model.bin").read_bytes() == b"same"
    assert drafts(store) == []


def test_drafts_of_another_machine_are_kept_for_a_week(store):
    make(store)
    room = store.root / "drafts"
    fresh, old = room / "0badc0de-1-2-aa", room / "0badc0de-1-2-bb"
    for path in (fresh, old):
        path.mkdir()
    past = time.time() - 8 * 24 * 3600
    os.utime(old, (past, past))
    make(store, OTHER)
    assert drafts(store) == [fresh]


# -- what cannot be written ------------------------------------------------------------------------


def test_a_store_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="must be a directory"):
            Store(place)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="rights do not bind root")
def test_a_store_without_rights_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="cannot be made"):
            Store(tmp_path / "store")
        with pytest.raises(InputError, match="cannot be written"):
            Store(tmp_path)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_said_so(store, error):
    with pytest.raises(StoreError, match=r"disk .* is full"), store.create("victim", KEY):
        raise error
    assert drafts(store) == []


def test_other_errors_of_the_maker_pass(store):
    with pytest.raises(PermissionError), store.create("victim", KEY):
        raise PermissionError(errno.EACCES, "not yours")


# -- checkpoints -----------------------------------------------------------------------------------


def test_a_checkpoint_outlives_its_process_and_goes_with_the_finished_artifact(store):
    torch = pytest.importorskip("torch")
    slot = store.slot("victim", KEY, interval=0)
    assert slot.load() is None
    shared = torch.arange(6.0).reshape(2, 3)
    slot.save({"a": shared.T, "b": shared, "c": torch.tensor(True)}, {"epoch": 3})
    tensors, facts = Store(store.root).slot("victim", KEY).load()
    assert facts == {"epoch": 3}
    assert tensors["a"].equal(shared.T)
    assert tensors["b"].equal(shared)
    assert tensors["c"].item() is True
    make(store)
    assert store.slot("victim", KEY).load() is None
    assert not slot.path.exists()


def test_checkpoints_are_not_written_more_often_than_wanted(store, monkeypatch):
    torch = pytest.importorskip("torch")
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    slot = store.slot("victim", KEY, interval=20)
    for now, epoch in ((110.0, 1), (121.0, 2), (130.0, 3)):  # noqa: B007
        slot.save({"a": torch.zeros(1)}, {"epoch": epoch})
    assert slot.load()[1] == {"epoch": 2}


def test_a_damaged_checkpoint_is_not_used(store, caplog):
    torch = pytest.importorskip("torch")
    slot = store.slot("victim", KEY, interval=0)
    slot.save({"a": torch.zeros(100)}, {})
    file = next(slot.path.iterdir())
    file.write_bytes(file.read_bytes()[:-10])
    assert slot.load() is None
    assert "is damaged" in caplog.text
    assert not slot.path.exists()
