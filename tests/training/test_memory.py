"""Keeping freed memory: fewer page faults, and hands off where somebody chose otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys
import torch
from backdoorkit._memory import reuse_freed_memory
if sys.argv[1] == "kept":
    print(reuse_freed_memory(), file=sys.stderr)
source = torch.ones(10_000_000)  # 40 MB: glibc maps such blocks and unmaps them when freed
for turn in range(16):
    if turn == 6:  # the heap has its size by now
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    source + source
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")


def run(mode: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if "MALLOC" not in k and k != "GLIBC_TUNABLES"}
    return subprocess.run(
        [sys.executable, "-c", _FAULTS, mode],
        env={**kept, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
    )


@on_glibc
def test_tensors_that_come_and_go_cause_a_quarter_of_the_page_faults() -> None:
    kept, plain = run("kept"), run("plain")
    assert kept.stderr.strip() == "True"
    assert int(kept.stdout) * 4 < int(plain.stdout)


@on_glibc
@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.top_pad=4096"}],
)
def test_an_environment_that_sets_malloc_is_left_alone(environment: dict[str, str]) -> None:
    assert run("kept", **environment).stderr.strip() == "False"
