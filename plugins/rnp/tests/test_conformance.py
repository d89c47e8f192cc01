"""What every defense must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import DefenseSuite


class TestRNP(DefenseSuite):
    method = "rnp"
    config: ClassVar = {"batch_size": 32, "recovery_epochs": 3}


class TestFixedNumberOfNeurons(DefenseSuite):
    method = "rnp"
    config: ClassVar = {
        "batch_size": 32,
        "recovery_epochs": 2,
        "units": "neuron",
        "norm_statistics": "running",
        "selection": "fixed",
        "prune_by": "number",
        "number": 5,
    }
