"""What every metric must keep."""

from __future__ import annotations

from backdoorkit.testing import MetricSuite


class TestDetection(MetricSuite):
    method = "detection"
