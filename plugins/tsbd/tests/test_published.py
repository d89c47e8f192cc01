"""Table 1 of the paper: what is printed must fit together."""

from __future__ import annotations

import statistics

import pytest

from backdoorkit.api import read_published
from backdoorkit_tsbd import backdoorkit_published_tables


@pytest.fixture(scope="module")
def figures():
    (table,) = backdoorkit_published_tables()
    return read_published(table)


def test_every_rating_follows_from_accuracy_and_success(figures):
    for attack, rows in figures.figures.items():
        before = rows["none"]
        for defense in rows.keys() - {"none"}:
            after = rows[defense]
            success, accuracy = before["ASR"] - after["ASR"], before["ACC"] - after["ACC"]
            rating = (max(0, success) - max(0, accuracy) + 100) / 2
            assert after["DER"] == pytest.approx(rating, abs=0.011), (attack, defense)


def test_the_averages_are_those_printed_for_fine_tuning(figures):
    rows = [attack["ft"] for attack in figures.figures.values()]
    means = [statistics.fmean(row[column] for row in rows) for column in figures.columns]
    assert means == pytest.approx([92.13, 34.75, 80.98], abs=0.006)
