"""One store and many processes: who makes what, and artifacts that come from elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from backdoorkit.errors import DamagedArtifactError
from backdoorkit.pipeline.keys import content_key
from backdoorkit.pipeline.store import MANIFEST, Store

KEY = content_key(step=1)
OTHER = content_key(step=2)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def make(store, key=KEY, content=b"weights"):
    with store.create("victim", key) as draft:
        draft.write_bytes("deep/model.bin", content)
        draft.facts["label"] = "train"
    return store.get("victim", key)


HOLD = """
import sys
from backdoorkit.pipeline.store import Store
with Store(sys.argv[1]).claim("victim", sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(store):
    """Another process that holds the claim until its standard input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.root), KEY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def waits(store, key=KEY):
    """A thread that takes the claim; what it appends says that it has it."""
    taken = []

    def take():
        with store.claim("victim", key):
            taken.append(key)

    thread = threading.Thread(target=take)
    thread.start()
    return thread, taken


@pytest.mark.parametrize("end", ["let go", "killed"])
def test_a_claim_is_one_process_s_until_it_lets_go_or_dies(store, holder, end, caplog):
    thread, taken = waits(store)
    other, others = waits(store, OTHER)
    other.join(10)
    assert others == [OTHER]
    time.sleep(0.1)
    assert taken == []
    assert f"waiting for another process, which is making victim-{KEY[:24]}" in caplog.text
    if end == "let go":
        holder.stdin.close()
    else:
        holder.kill()
    thread.join(10)
    assert taken == [KEY]
    assert list((store.root / "claims").iterdir()) == []


def test_threads_of_one_process_wait_for_each_other(store):
    inside, most = [], []

    def work():
        for _ in range(20):
            with store.claim("victim", KEY):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 80
    assert max(most) == 1


def test_without_locks_nobody_waits(store, holder, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(descriptor, operation):
        raise OSError(__import__("errno").ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with store.claim("victim", KEY):
        pass


def copy(artifact, spoil=None):
    def fetch(folder):
        shutil.copytree(artifact.path, folder, dirs_exist_ok=True)
        if spoil is not None:
            spoil(folder)

    return fetch


def test_an_artifact_from_elsewhere_is_the_same(store, tmp_path):
    made = make(store)
    here = Store(tmp_path / "here")
    taken = here.adopt("victim", KEY, copy(made))
    assert (taken.digest, taken.facts, taken.files) == (made.digest, made.facts, made.files)
    assert taken.path.parent.parent.parent == here.root
    assert here.adopt("victim", KEY, copy(made)).digest == made.digest
    assert list((here.root / "drafts").iterdir()) == []


def other_key(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["key"] = OTHER
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "deep/model.bin").write_bytes(b"w3ights"),
        lambda folder: (folder / "deep/model.bin").unlink(),
        lambda folder: (folder / MANIFEST).unlink(),
        other_key,
    ],
    ids=["changed", "missing", "no manifest", "other key"],
)
def test_what_is_not_whole_is_not_taken(store, tmp_path, spoil):
    made = make(store)
    here = Store(tmp_path / "here")
    with pytest.raises(DamagedArtifactError):
        here.adopt("victim", KEY, copy(made, spoil))
    assert here.get("victim", KEY) is None
    assert list((here.root / "drafts").iterdir()) == []


def test_another_artifact_is_not_taken_for_this_one(store, tmp_path):
    made = make(store, OTHER)
    with pytest.raises(DamagedArtifactError, match="is victim"):
        Store(tmp_path / "here").adopt("victim", KEY, copy(made))


def test_a_store_that_cannot_be_written_says_so(store):
    (store.root / "claims").write_text("in the way")
    with pytest.raises(Exception, match="cannot be written"), store.claim("victim", KEY):
        os.abort()
