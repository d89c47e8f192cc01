"""What every detector must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import DetectorSuite


class TestBySize(DetectorSuite):
    method = "activation-clustering"


class TestBySilhouette(DetectorSuite):
    method = "activation-clustering"
    config: ClassVar = {"rule": "silhouette", "reduction": "pca"}
