"""What every detector must keep."""

from __future__ import annotations

from backdoorkit.testing import DetectorSuite


class TestDetector(DetectorSuite):
    method = "spectral-signatures"
