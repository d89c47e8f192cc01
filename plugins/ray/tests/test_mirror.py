"""Artifacts through a folder or object storage: whole, compared with their checksums, or not."""

from __future__ import annotations

import json

import pytest

from backdoorkit.executing import MANIFEST, InputError, Store
from backdoorkit_ray._mirror import Mirror, MirroredStore

KEY = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4


@pytest.fixture(params=["folder", "file", "memory"])
def url(request, tmp_path):
    """A plain path, a URL, and a file system without folders or renaming, as objects have it."""
    if request.param == "memory":
        return f"memory://{tmp_path.name}/artifacts"
    return {"folder": "{}", "file": "file://{}"}[request.param].format(tmp_path / "shared")


@pytest.fixture
def mirror(url):
    return Mirror(url)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "here")


@pytest.fixture
def other(tmp_path):
    return Store(tmp_path / "there")


def make(store, key=KEY):
    with store.create("victim", key) as draft:
        draft.write_bytes("model.bin", b"weights" * 1000)
        draft.write_json("deep/metrics.json", {"ACC": 0.5})
        draft.facts["label"] = "train"
    return store.get("victim", key)


def test_an_artifact_travels_whole(mirror, store, other):
    mirror.require_writable()
    made = make(store)
    assert not mirror.has("victim", KEY)
    assert mirror.download("victim", KEY, other) is None
    mirror.upload(made)
    mirror.upload(made)
    assert mirror.has("victim", KEY)
    taken = mirror.download("victim", KEY, other)
    assert (taken.digest, taken.facts, taken.files) == (made.digest, made.facts, made.files)
    assert taken.file("model.bin").read_bytes() == b"weights" * 1000
    assert not mirror.has("victim", OTHER)


def test_until_the_manifest_is_there_nothing_is(mirror, store, other, monkeypatch):
    made = make(store)

    def fail(*_, **__):
        raise OSError("the network is gone")

    monkeypatch.setattr(mirror._files, "mv", fail)
    with pytest.raises(OSError, match="network"):
        mirror.upload(made)
    assert mirror.download("victim", KEY, other) is None
    monkeypatch.undo()
    mirror.upload(made)
    assert mirror.download("victim", KEY, other) is not None


def spoil(mirror, name):
    """Another content in a file of the artifact, or none."""
    files = mirror._files
    (path,) = [path for path in files.find(mirror._root) if path.endswith(name)]
    return path


@pytest.mark.parametrize("fault", ["changed", "missing", "manifest", "outside"])
def test_what_is_damaged_is_removed_and_can_be_put_there_again(
    mirror, store, other, fault, caplog, tmp_path
):
    made = make(store)
    mirror.upload(made)
    files, manifest = mirror._files, spoil(mirror, MANIFEST)
    if fault == "changed":
        files.pipe_file(spoil(mirror, "model.bin"), b"w3ights" * 1000)
    elif fault == "missing":
        files.rm_file(spoil(mirror, "model.bin"))
    elif fault == "manifest":
        files.pipe_file(manifest, files.cat_file(manifest)[:-20])
    else:
        content = json.loads(files.cat_file(manifest))
        content["files"]["../../escaped"] = content["files"].pop("model.bin")
        files.pipe_file(manifest, json.dumps(content).encode())
    assert mirror.download("victim", KEY, other) is None
    assert "is damaged" in caplog.text
    assert not mirror.has("victim", KEY)
    assert not list(tmp_path.rglob("escaped"))
    assert list((other.root / "drafts").iterdir()) == []
    mirror.upload(made)
    assert mirror.download("victim", KEY, other).digest == made.digest


def test_a_node_s_store_takes_what_it_lacks_and_gives_what_it_makes(url, tmp_path):
    here, there = (MirroredStore(tmp_path / name, Mirror(url)) for name in ("here", "there"))
    made = make(here)
    assert there.get("victim", KEY).digest == made.digest
    assert Store(there.root).get("victim", KEY).digest == made.digest
    assert there.get("victim", OTHER) is None


def test_nothing_is_given_of_what_was_not_finished(url, tmp_path):
    store = MirroredStore(tmp_path / "here", Mirror(url))
    with pytest.raises(ZeroDivisionError), store.create("victim", KEY):
        1 / 0  # noqa: B018
    assert not Mirror(url).has("victim", KEY)


@pytest.mark.parametrize("url", ["nosuch://bucket/path", "s3"])
def test_a_url_that_cannot_be_used_is_refused(url, tmp_path):
    (tmp_path / "s3").write_text("a file, no folder")
    with pytest.raises(InputError, match="storage"):
        Mirror(url if "://" in url else str(tmp_path / url)).require_writable()
