"""What every attack must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import AttackSuite


class TestAdversarial(AttackSuite):
    method = "lc"
    config: ClassVar = {"steps": 3, "surrogate_epochs": 1}


class TestInterpolated(AttackSuite):
    method = "lc"
    config: ClassVar = {"images": "interpolated", "autoencoder_epochs": 1, "latent": 8}


class TestPatchesAlone(AttackSuite):
    method = "lc"
    config: ClassVar = {"images": "plain", "rate_basis": "target-class", "amplitude": 0.25}
