"""Files of strangers: nothing in them runs, and whatever is wrong with them is one clear line."""

from __future__ import annotations

import gzip
import os
import pickle
import random
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from backdoorkit.errors import BackdoorkitError, InputError, UnsafeFileError
from backdoorkit.models import checkpoints
from backdoorkit.models.checkpoints import read_weights

WEIGHTS = {"conv.weight": torch.ones(4, 3, 3, 3), "fc.weight": torch.ones(10, 4)}


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "victim.pth"


@pytest.fixture
def canary(tmp_path):
    file = tmp_path / "executed"
    yield Canary(file)
    assert not file.exists()


def refusal(path, kind=InputError):
    with pytest.raises(kind) as caught:
        read_weights(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# -- files that want to run ------------------------------------------------------------------------


def test_the_canary_would_sing(canary, tmp_path):
    """Else the tests below would prove nothing."""
    song = Canary(tmp_path / "song")
    pickle.loads(pickle.dumps(song))
    assert song.file.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_are_refused_unexecuted(path, canary, protocol):
    path.write_bytes(pickle.dumps({"state_dict": canary}, protocol=protocol))
    assert "wants to import posix.system" in refusal(path, UnsafeFileError)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("is_new_format", [True, False])
def test_checkpoints_with_code_beside_the_weights_are_refused(
    path, canary, is_new_format, protocol
):
    torch.save(
        {"state_dict": WEIGHTS, "extra": canary},
        path,
        _use_new_zipfile_serialization=is_new_format,
        pickle_protocol=protocol,
    )
    message = refusal(path, UnsafeFileError)
    assert "wants to import posix.system" in message
    assert "as .safetensors" in message


def test_code_in_a_second_pickle_of_an_archive_is_refused(path, canary):
    torch.save(WEIGHTS, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("victim/more.pkl", pickle.dumps(canary, protocol=2))
    assert "posix.system" in refusal(path, UnsafeFileError)


def test_an_archive_behind_a_pickle_hides_nothing(path, canary, tmp_path):
    """The file is a pickle from the front and a sound archive from the back."""
    torch.save(WEIGHTS, tmp_path / "sound.pt")
    front = pickle.dumps(canary, protocol=2)
    path.write_bytes(front + (tmp_path / "sound.pt").read_bytes())
    assert "posix.system" in refusal(path, UnsafeFileError)


def test_restricted_reader_alone_would_refuse_too(path, canary, monkeypatch):
    torch.save({"state_dict": WEIGHTS, "extra": canary}, path)
    monkeypatch.setattr("backdoorkit.models._pickles._refuse_unsafe", lambda *_: None)
    assert "cannot be read" in refusal(path)


def test_allowance_for_numpy_does_not_outlive_the_reading(path):
    torch.save({"net": WEIGHTS, "best": np.float64(1)}, path)
    before = set(torch.serialization.get_safe_globals())
    read_weights(path)
    assert set(torch.serialization.get_safe_globals()) == before


def test_arrays_beside_the_weights_are_passed_over_and_never_made(path, monkeypatch):
    torch.save({"net": WEIGHTS, "order": np.arange(3), "names": np.array(["a", "b"])}, path)
    made = []
    monkeypatch.setattr(np, "frombuffer", lambda *_, **__: made.append(1))
    monkeypatch.setattr(
        "backdoorkit.models._pickles._Ignored.__setstate__", lambda *_: made.append("stand-in")
    )
    assert read_weights(path).keys() == WEIGHTS.keys()
    assert set(made) == {"stand-in"}


def test_other_names_of_numpy_are_not_on_the_list(path):
    torch.save({"net": WEIGHTS, "generator": np.random.default_rng(0)}, path)
    assert "numpy" in refusal(path, UnsafeFileError)


def test_onnx_files_are_refused_by_name(tmp_path):
    path = tmp_path / "victim.onnx"
    path.write_bytes(b"\x08\x07\x12\x07pytorch" + bytes(64))
    assert "ONNX" in refusal(path)


def test_whole_models_are_refused_and_the_state_dict_asked_for(path):
    torch.save(nn.Sequential(nn.Linear(2, 2)), path)
    message = refusal(path, UnsafeFileError)
    assert "torch.nn.modules.container.Sequential" in message
    assert "state_dict" in message


def test_torchscript_programs_are_refused(path):
    torch.save(WEIGHTS, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("victim/code/__torch__.py", "op_version_set = 1")
        archive.writestr("victim/constants.pkl", pickle.dumps((), protocol=2))
    assert "TorchScript program" in refusal(path, UnsafeFileError)


def test_protocols_that_no_safe_reader_takes_are_named(path):
    torch.save(WEIGHTS, path, pickle_protocol=4)
    assert "pickled in protocol 4" in refusal(path, UnsafeFileError)


def test_names_out_of_the_file_cannot_write_to_the_terminal(path):
    path.write_bytes(b"\x80\x02cos\x1b[31m\n" + b"x" * 500 + b"\n.")
    message = refusal(path, UnsafeFileError)
    assert r"os\x1b[31m.xxx" in message
    assert "x" * 100 not in message


# -- files that claim too much ---------------------------------------------------------------------


def test_tensors_larger_than_their_numbers_are_refused(path):
    torch.save({"w": torch.zeros(1).expand(10**6, 10**6)}, path)
    assert "claims tensors larger than the file" in refusal(path)


@pytest.mark.parametrize("is_new_format", [True, False])
def test_storages_larger_than_the_file_are_refused(path, is_new_format):
    torch.save({"w": torch.zeros(300)}, path, _use_new_zipfile_serialization=is_new_format)
    three_hundred, more = b"M\x2c\x01", b"M\x2c\x7f"
    if not is_new_format:
        path.write_bytes(path.read_bytes().replace(three_hundred, more))
    else:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                is_index = name.endswith("data.pkl")
                archive.writestr(
                    name, content.replace(three_hundred, more) if is_index else content
                )
    assert "cannot be read" in refusal(path)


def test_compressed_archives_are_refused_before_they_are_unpacked(path, tmp_path):
    torch.save({"w": torch.zeros(10**5)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert "compressed archive" in refusal(path)


def test_huge_files_are_refused_unread(path, monkeypatch):
    monkeypatch.setattr(checkpoints, "read_torch_file", pytest.fail)
    with path.open("wb") as stream:
        stream.truncate(9 << 30)  # takes no room on the disk
    assert "9.0 GiB, and weights of at most 8 GiB" in refusal(path)


# -- files that are something else -----------------------------------------------------------------


def test_missing_files_and_folders_are_named(path, tmp_path):
    assert "there is no weights file" in refusal(path)
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>\n<html></html>", "begins with '<!DOCTYPE html>'; was it downloaded"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "begins with 'version https"),
        (b"cat\ndog\nand more.", "begins with 'cat'"),
        (b"\x89PNG\r\n\x1a\n\0\0", "unknown format"),
        (b"\0" * 100, "unknown format"),
        (gzip.compress(b"weights"), "packed archive"),
        (b"PK\x03\x04 and nothing else", "damaged archive"),
        (pickle.dumps([1.0, 2.0], protocol=2), "cannot be read"),
    ],
)
def test_other_files_are_told_by_their_beginning(path, content, fault):
    path.write_bytes(content)
    assert fault in refusal(path)


def test_archives_of_other_tools_are_to_be_unpacked(path, tmp_path):
    (tmp_path / "readme").write_text("no weights")
    with tarfile.open(path, "w") as archive:
        archive.add(tmp_path / "readme", "readme")
    assert "unpack it" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tmp_path / "readme", "readme")
    assert "unpack it" in refusal(path)


@pytest.mark.parametrize("content", [b"hello", b"\x80\x02}.", b"\xff" * 8 + b"{}"])
def test_false_safetensors_files_are_refused(tmp_path, content):
    file = tmp_path / "victim.safetensors"
    file.write_bytes(content)
    assert "not a sound .safetensors file" in refusal(file)


def test_sparse_tensors_are_refused(path):
    torch.save({"w": torch.eye(3).to_sparse()}, path)
    assert "_rebuild_sparse_tensor" in refusal(path, UnsafeFileError)


# -- damaged files ---------------------------------------------------------------------------------


def damaged(content, generator):
    """One of the ways in which a file goes bad: cut short, some bytes changed, some missing."""
    content = bytearray(content)
    position = generator.randrange(len(content))
    match generator.randrange(4):
        case 0:
            del content[position:]
        case 1:
            content[position] = generator.randrange(256)
        case 2:
            del content[position : position + generator.randrange(1, 20)]
        case _:  # where the names and sizes are
            content[position % 900] = generator.randrange(256)
    return bytes(content)


@pytest.mark.parametrize("kind", ["new.pt", "old.pt", "file.safetensors"])
def test_damaged_files_never_end_in_anything_but_a_clear_line(tmp_path, kind):
    file = tmp_path / kind
    if kind == "file.safetensors":
        save_file(WEIGHTS, file)
    else:
        torch.save(
            {"net": WEIGHTS, "acc": 0.5}, file, _use_new_zipfile_serialization=kind == "new.pt"
        )
    sound, generator, refusals = file.read_bytes(), random.Random(0), []
    for _ in range(150):
        file.write_bytes(damaged(sound, generator))
        try:
            read_weights(file)
        except BackdoorkitError as error:
            refusals.append(str(error))
    assert len(refusals) > 50
    assert not any("\n" in message for message in refusals)
