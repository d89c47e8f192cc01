"""Our rows beside published ones: matched by names, told apart by options."""

from __future__ import annotations

import attrs

from backdoorkit.hooks.published import PublishedFigures
from backdoorkit.pipeline.results import Named, Origin
from backdoorkit.report.comparing import compare, comparison_text

from .conftest import cell, row

FIGURES = PublishedFigures(
    name="their-table1",
    source="Them (Venue 2020)",
    setting="another network",
    columns=("ACC", "ASR"),
    corrections=("ft on badnets: 1, not 7",),
    figures={
        "none": {"none": {"ACC": 95.0}},
        "badnets": {
            "none": {"ACC": 91.0, "ASR": 99.0},
            "ft": {"ACC": 90.0, "ASR": 1.0},
            "abl": {"ACC": 1.0},
            "abl (turning_epoch=10)": {"ACC": 10.0},
        },
        "badnets (poison_rate=0.5)": {"ft": {"ACC": 50.0}},
    },
)


def compared(*rows):
    return compare(rows, FIGURES)


def test_rows_are_matched_by_methods_and_the_clean_model_is_none():
    found = compared(
        row("badnets", "ft", cell()),
        row("badnets", "no defense", cell()),
        row("none", "no defense", cell()),
        row("blended", "ft", cell()),
        row("badnets", "nad", cell()),
    )
    assert found.cells == {
        0: {"ACC": 90.0, "ASR": 1.0},
        1: {"ACC": 91.0, "ASR": 99.0},
        2: {"ACC": 95.0},
    }


def test_options_of_a_label_do_not_hinder():
    assert compared(row("badnets (corner=left)", "ft (epochs=3)", cell())).cells[0]["ASR"] == 1.0


def test_options_that_the_paper_names_must_be_ours():
    ten = row("badnets", "abl", cell(), options={"turning_epoch": 10, "epochs": 3})
    twenty = row("badnets", "abl", cell(), options={"turning_epoch": 20})
    assert compared(ten, twenty).cells == {0: {"ACC": 10.0}, 1: {"ACC": 1.0}}


def test_without_origins_the_options_in_the_labels_decide():
    half = attrs.evolve(row("badnets (poison_rate=0.5)", "ft", cell()), origin=None)
    other = attrs.evolve(row("badnets (poison_rate=0.1)", "ft", cell()), origin=None)
    assert compared(half, other).cells == {0: {"ACC": 50.0}, 1: {"ACC": 90.0, "ASR": 1.0}}


def test_a_composed_attack_is_in_no_paper():
    both = Origin(attacks=(Named(name="badnets"), Named(name="sig")), defense=Named(name="ft"))
    found = compared(attrs.evolve(row("badnets + sig", "ft", cell()), origin=both))
    assert found.cells == {}
    assert "their-table1: none of the rows here is in it." in found.notes


def test_source_setting_corrections_and_doubtful_matches_are_told():
    notes = compared(
        row("badnets (poison_rate=0.1)", "ft", cell()),
        row("badnets (poison_rate=0.2)", "ft", cell()),
    ).notes
    assert notes[0] == "their-table1: Them (Venue 2020). Measured there: another network."
    assert notes[1] == "their-table1, correction: ft on badnets: 1, not 7."
    assert "its row badnets, ft stands beside 2 rows here" in notes[2]


def test_on_a_terminal_the_paper_s_rows_are_a_section_with_their_source():
    rows = [
        row("badnets", "no defense", cell(0, ACC=0.9), cell(1, ACC=0.92)),
        row("badnets", "ft", cell(0, ACC=0.9, ASR=0.015)),
        row("badnets", "nad", cell(0, ACC=0.9)),
    ]
    lines = comparison_text(rows, FIGURES).splitlines()
    assert lines[:4] == [
        "attack   defense     their-table1 ACC  their-table1 ASR",
        "-------  ----------  ----------------  ----------------",
        "badnets  no defense      91.00 (0.00)             99.00",
        "badnets  ft              90.00 (0.00)      1.00 (+0.50)",
    ]
    assert lines[5].startswith("their-table1: Them (Venue 2020)")
