"""The tables of the talk: averages are those printed."""

from __future__ import annotations

import statistics

import pytest

from backdoorkit.api import read_published
from backdoorkit_abl import backdoorkit_published_tables

TABLES = {table.name: table for table in backdoorkit_published_tables()}

#: attack success and accuracy of ABL, averaged over the attacks
AVERAGES = {
    "abl-cifar10": (7.69, 84.76),
    "abl-gtsrb": (7.27, 95.25),
    "abl-imagenet-subset": (6.00, 86.87),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_the_averages_are_those_printed(name):
    figures = read_published(TABLES[name])
    rows = [rows["abl"] for attack, rows in figures.figures.items() if attack != "none"]
    means = tuple(statistics.fmean(row[column] for row in rows) for column in ("ASR", "ACC"))
    assert means == pytest.approx(AVERAGES[name], abs=0.006)


def test_rows_of_one_method_are_told_apart_by_options():
    epochs = read_published(TABLES["abl-turning-epoch"])
    assert epochs.cell("badnets", "abl (turning_epoch=10)") == {"ASR": 1.12, "ACC": 85.30}
    stress = read_published(TABLES["abl-stress"])
    assert stress.cell("blended (poison_rate=0.7)", "abl") == {"ASR": 62.28, "ACC": 64.43}
    methods = read_published(TABLES["abl-unlearning-methods"])
    assert len(methods.figures["badnets"]) == 12
