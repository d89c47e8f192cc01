"""What every detector must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import DetectorSuite


class TestDataLimited(DetectorSuite):
    method = "dl-tnd"
    config: ClassVar = {"images_per_class": 1, "iterations": 4, "rounds": 2}


class TestDataFree(DetectorSuite):
    method = "df-tnd"
    config: ClassVar = {"iterations": 4, "refinement": 2, "seeds": 3}
