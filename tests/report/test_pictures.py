"""Pictures of a report: what they show, from known pixels."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from backdoorkit.report.pictures import contact_sheet, trigger_picture


def pixels(uri: str) -> np.ndarray:
    kind, _, content = uri.partition(";base64,")
    assert kind == "data:image/png"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    clean = np.full((2, 3, 32, 32), 100, dtype=np.uint8)
    triggered = clean.copy()
    triggered[..., 31, 31] = 105
    path = tmp_path / "samples.safetensors"
    save_file({"clean": clean, "triggered": triggered, "trigger": triggered[:1]}, path)
    return path


def test_a_sheet_has_clean_triggered_and_amplified_difference(samples: Path) -> None:
    made = contact_sheet(samples)
    assert made.rows == ("as they are", "triggered", "triggered: difference times ten")
    sheet = pixels(made.uri)
    side = 2 * 32 + 4  # enlarged twice, framed by two pixels
    assert sheet.shape == (3 * side, 2 * side, 3)
    assert sheet[10, 10].tolist() == [100, 100, 100]
    assert sheet[side + 64, 64].tolist() == [105, 105, 105]
    assert sheet[2 * side + 10, 10].tolist() == [128, 128, 128]
    assert sheet[2 * side + 64, 64].tolist() == [178, 178, 178]  # 128 + 10 * 5


def test_without_an_attack_there_is_one_row_and_no_trigger(tmp_path: Path) -> None:
    path = tmp_path / "samples.safetensors"
    save_file({"clean": np.zeros((1, 1, 8, 8), dtype=np.uint8)}, path)
    assert pixels(contact_sheet(path).uri).shape == (68, 68)
    assert trigger_picture(path) is None


def test_every_part_of_a_composed_attack_and_its_covers_have_rows(tmp_path: Path) -> None:
    path = tmp_path / "samples.safetensors"
    flat = {name: np.full((2, 1, 8, 8), 9, np.uint8) for name in ("clean", "triggered.1", "cover")}
    flat["triggered.0"] = flat["clean"] + 1
    flat |= {f"trigger.{number}": flat["clean"][:1] + number for number in (0, 1)}
    save_file(flat, path)
    sheet = contact_sheet(path)
    assert sheet.rows == (
        "as they are",
        "triggered 1",
        "triggered 1: difference times ten",
        "triggered 2",
        "triggered 2: difference times ten",
        "cover",
        "cover: difference times ten",
    )
    image = pixels(sheet.uri)
    assert [int(image[68 * row + 30, 30]) for row in range(7)] == [9, 10, 138, 9, 128, 9, 128]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(sheet.png_bytes()))), image)
    trigger = trigger_picture(path)
    assert trigger is not None
    assert pixels(trigger).shape == (196, 392)


def test_the_trigger_is_shown_large(samples: Path) -> None:
    picture = trigger_picture(samples)
    assert picture is not None
    assert pixels(picture).shape == (196, 196, 3)
