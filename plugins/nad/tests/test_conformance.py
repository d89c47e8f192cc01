"""What every defense must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import DefenseSuite


class TestNAD(DefenseSuite):
    method = "nad"
    config: ClassVar = {"epochs": 2, "teacher_epochs": 1}


class TestNamedLayers(DefenseSuite):
    method = "nad"
    config: ClassVar = {
        "epochs": 1,
        "teacher_epochs": 1,
        "layers": ("network.bn2",),
        "beta": (1.0,),
        "distance": "norm",
        "cutout": 3,
        "batch_size": 32,
    }
