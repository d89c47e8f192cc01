"""A training that two processes share: what one would have computed, up to rounding."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the two processes of ``team_member.py`` wrote."""
    folder = tmp_path_factory.mktemp("team")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    script = Path(__file__).with_name("team_member.py")
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", script, folder],
            env={**os.environ, **common, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", ["usual", "single images", "cumulative"])
def test_weights_and_statistics_are_those_of_one_process(found, case):
    facts = found[0][case]
    for name, alone in facts["alone"].items():
        torch.testing.assert_close(facts["together"][name], alone, rtol=1e-4, atol=1e-5)


def test_both_processes_end_with_the_same_bits(found):
    first, second = (facts["usual"]["together"] for facts in found)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("case", ["usual", "single images"])
def test_history_and_cost_are_those_of_whole_batches(found, case):
    facts = found[0][case]
    alone, together = facts["losses"]
    assert together == pytest.approx(alone, rel=1e-4)
    alone, together = facts["right"]
    assert together == pytest.approx(alone, abs=1e-6)
    alone, together = facts["costs"]
    assert together == alone


def test_a_resumed_training_ends_with_the_same_bits(found):
    facts = found[0]["resumed"]
    assert all(torch.equal(value, facts["parts"][name]) for name, value in facts["whole"].items())


def test_hooks_are_refused(found):
    assert "cannot be shared" in found[0]["refusal"]


def test_the_model_is_left_as_it_was(found):
    assert found[0]["left over"] == []
    assert found[0]["over"]
