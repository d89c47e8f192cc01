"""A model file and a folder of pictures, nothing else: the usual detector says what is in it."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from backdoorkit.cli import cli
from backdoorkit.testing.planted import PlantedNetwork, planted_images

pytest.importorskip("backdoorkit_nc")
BUDGET = {"inversion_steps": 30, "inversion_batches": 4, "penalty_start": "at-once"}


def test_the_planted_backdoor_is_found(tmp_path, monkeypatch):
    (tmp_path / "planted_here.py").write_text(
        "from backdoorkit.testing.planted import PlantedNetwork\n\n\n"
        "def make(num_classes):\n    return PlantedNetwork()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(PlantedNetwork().state_dict(), tmp_path / "model.pth")
    images = planted_images(48)
    for number, (pixels, label) in enumerate(zip(images.images, images.labels, strict=True)):
        path = tmp_path / "images" / str(int(label)) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0].numpy()).save(path)
    args = ["--data", str(tmp_path / "images"), "--arch", "planted_here:make", "--threads", "1"]
    for key, value in BUDGET.items():
        args += ["--set", f"detectors[0].{key}={value}"]
    args += ["--store", str(tmp_path / "store"), "--json", "--fail-on-detect"]
    result = CliRunner().invoke(cli, ["-q", "scan", str(tmp_path / "model.pth"), *args])
    assert result.exit_code == 4, result.output
    found = json.loads(result.stdout)
    assert (found["verdict"], found["target"]) == ("backdoored", 0)
    (said,) = found["detectors"]
    assert said["details"]["norms"][0] == min(said["details"]["norms"])
    assert said["p_value_source"] == "the detector's own theory"
