"""What every defense must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import DefenseSuite


class TestANP(DefenseSuite):
    method = "anp"
    config: ClassVar = {"iterations": 20, "batch_size": 16}


class TestReleasedCode(DefenseSuite):
    method = "anp"
    config: ClassVar = {"preset": "official", "iterations": 10, "batch_size": 16}


class TestNeurons(DefenseSuite):
    method = "anp"
    config: ClassVar = {
        "iterations": 10,
        "batch_size": 16,
        "units": "neuron",
        "norm_statistics": "running",
        "prune_by": "number",
    }
