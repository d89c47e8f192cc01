"""Attacks joined by ``and``, victims that are kept and started from, pictures."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from backdoorkit.cli import cli
from backdoorkit.cli._steps import ChainStep, joined
from backdoorkit.errors import InputError

AND = ChainStep("and", {})
FAST = (
    *("--data", "digits", "--epochs", "1", "--device", "cpu", "--threads", "1"),
    *("--set", "data.train_size=200", "--set", "data.test_size=50", "--set", "model.width=4"),
)

needs_plugins = pytest.mark.skipif(
    any(
        importlib.util.find_spec(f"backdoorkit_{name}") is None
        for name in ("badnets", "blended", "clp", "metrics")
    ),
    reason="needs the plugins badnets, blended, clp and metrics",
)


def attack(name: str) -> ChainStep:
    return ChainStep("attacks", {"name": name})


def test_attacks_with_and_between_them_are_one() -> None:
    defense = ChainStep("defenses", {"name": "prune"})
    steps = joined([attack("a"), AND, attack("b"), AND, attack("c"), attack("d"), defense])
    parts = [{"name": "a"}, {"name": "b"}, {"name": "c"}]
    assert steps == [
        ChainStep("attacks", {"name": "composed", "parts": parts}),
        attack("d"),
        defense,
    ]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([AND, attack("a")], "stands between two attacks"),
        ([attack("a"), AND, AND, attack("b")], "stands between two attacks"),
        ([ChainStep("defenses", {"name": "prune"}), AND, attack("a")], "between two attacks"),
        ([attack("a"), AND, ChainStep("defenses", {"name": "prune"})], "wanted, not 'prune'"),
        ([attack("a"), AND], "there is nothing"),
    ],
)
def test_and_elsewhere_is_refused(steps: list[ChainStep], message: str) -> None:
    with pytest.raises(InputError, match=message):
        joined(steps)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)

    def call(*args: str) -> Result:
        result = CliRunner().invoke(cli, ["-q", "run", *args])
        assert result.exit_code == 0, result.output
        return result

    return call


@needs_plugins
def test_a_joined_attack_is_a_recipe_like_any_other(call) -> None:
    command = ("badnets", "--target", "0", "and", "blended", "--target", "1")
    values = tomllib.loads(call("--dry-run", *command).stdout)
    (composed,) = values["attacks"]
    assert [(part["name"], part["target"]) for part in composed["parts"]] == [
        ("badnets", 0),
        ("blended", 1),
    ]


@needs_plugins
def test_a_victim_is_kept_and_started_from_elsewhere(call, tmp_path: Path) -> None:
    command = ("badnets", "and", "blended", "--target", "1")
    first = call(*FAST, "--json", "--keep-victims", "kept", "--pictures", "pictures", *command)
    (kept,) = (tmp_path / "kept").iterdir()
    assert kept.name.startswith("badnets-blended-")
    assert {"model.safetensors", "trigger.safetensors", "poison.safetensors"} <= {
        path.name for path in kept.iterdir()
    }
    (picture,) = (tmp_path / "pictures").iterdir()
    assert picture.name == "badnets-blended.png"
    with Image.open(picture) as sheet:
        assert sheet.height == 5 * 68  # clean, two parts, and two differences
    again = call("--victim", "kept/" + kept.name, "--store", "other", "--json", "clp")
    before, after = (json.loads(result.stdout)["rows"] for result in (first, again))
    assert [row["defense"] for row in after] == ["no defense", "clp"]
    assert after[0]["mean"] == before[0]["mean"]
    assert {"ASR", "ASR badnets", "ASR blended"} <= set(after[0]["mean"])
