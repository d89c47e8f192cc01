"""Geometry and colours of figures, against known answers."""

from __future__ import annotations

import re

import pytest

from backdoorkit.report.drawing import PANEL, curves, heat_maps, panels, shade

from .conftest import cell, row, table


def luminance(colour):
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_no_change_is_neutral_and_the_ends_are_blue_and_orange():
    assert shade(0.5) == ("#f7f7f7", "#000000")
    assert shade(1.0) == ("#05488c", "#ffffff")
    assert shade(0.0)[0] == "#b35806"


@pytest.mark.parametrize("percent", range(0, 101, 5))
def test_the_number_in_a_cell_can_be_read(percent):
    one, two = sorted(map(luminance, shade(percent / 100)))
    assert (two + 0.05) / (one + 0.05) >= 4.5


def test_the_map_has_attacks_below_and_defenses_beside(some_table):
    (made,) = heat_maps(some_table)
    assert made.defenses == ("ft", "tsbd")
    assert [(attack, [c.text for c in cells]) for attack, cells in made.rows] == [
        ("badnets", ["70.0", "94.0"]),
        ("blended", ["70.0", "94.0"]),
    ]
    assert made.rows[0][1][0].title == "badnets, ft: 70.00 ± 0.00 over 2 seeds"


def test_models_have_maps_of_their_own_and_holes_are_dashes():
    made = heat_maps(
        table(
            row("badnets", "ft", cell(DER=0.5), model="a"),
            row("sig", "tsbd", cell(DER=0.5), model="a"),
            row("badnets", "ft", cell(DER=0.5), model="b"),
        )
    )
    assert [m.title for m in made] == ["a", "b"]
    assert [[c.text for c in cells] for _, cells in made[0].rows] == [["50.0", "-"], ["-", "50.0"]]


def test_a_defense_moves_from_before_to_after(some_table):
    made = panels(some_table)
    assert [panel.title for panel in made.panels] == ["ft", "tsbd"]
    assert made.legend == (("a", "badnets"), ("b", "blended"))
    move = made.panels[0].moves[0]
    # x: 0 % at 32, 100 % at 172; y: 100 % at 8, the floor of 80 % at 122
    assert made.y_ticks[0] == (122.0, "80")
    assert move.after == (102.0, pytest.approx(8 + 114 * 12 / 20))
    assert move.before == (165.0, pytest.approx(8 + 114 * 9 / 20))
    assert "before: ACC 91.00, ASR 95.00" in move.title
    assert all(0 <= p[0] <= PANEL[0] and 0 <= p[1] <= PANEL[1] for p in (move.before, move.after))


def test_without_defenses_there_are_no_panels():
    assert panels(table(row("badnets", "no defense", cell(ACC=0.9, ASR=0.9)))) is None


def test_a_curve_runs_over_the_epochs_of_each_seed():
    history = [{"loss": 2.0, "accuracy": 0.5}, {"loss": 1.0, "accuracy": 0.75}, {"loss": 0.0}]
    loss, accuracy = curves({0: history, 1: history[:2]})
    assert loss.lines[0] == ("32.0,8.0 102.0,65.0 172.0,122.0", "seed 0: 0 at the end")
    assert loss.lines[1][0] == "32.0,8.0 102.0,65.0"
    assert accuracy.title == "training accuracy %"
    assert accuracy.y_ticks[-1] == (8.0, "75")


def test_numbers_that_are_none_do_not_reach_a_curve():
    (loss,) = curves({0: [{"loss": float("nan")}, {"loss": 1.0}, {"loss": None}, {"loss": 3.0}]})
    assert not re.search("nan|None", loss.lines[0][0])
    assert list(curves({0: [{"other": 1.0}]})) == []
