"""What every detector must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import DetectorSuite


class TestDetector(DetectorSuite):
    method = "strip"
    config: ClassVar = {"overlays": 6}
