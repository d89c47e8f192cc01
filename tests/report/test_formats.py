"""Markdown, CSV, LaTeX and JSON of one report: the same numbers, nothing of them markup."""

from __future__ import annotations

import csv
import io
import json

import pytest

from backdoorkit.hooks.published import PublishedFigures
from backdoorkit.pipeline.results import Cell
from backdoorkit.report.making import make_report
from backdoorkit.report.runs import read_run

from .conftest import cell, row, table

PUBLISHED = PublishedFigures(
    name="their-table1",
    source="Them (Venue 2020)",
    setting="another network",
    columns=("ACC", "ASR"),
    figures={
        attack: {"ft": {"ACC": 90.0, "ASR": 1.0}, "none": {"ACC": 91.0}}
        for attack in ("badnets", "blended")
    },
)


@pytest.fixture
def report(write_run, some_table):
    return make_report([read_run(write_run(some_table))], [PUBLISHED])


def records(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_markdown_has_means_costs_and_the_difference(report):
    lines = report.to_markdown().splitlines()
    (tuned,) = (line for line in lines if line.startswith("| badnets | ft |"))
    assert tuned == (
        "| badnets | ft | 88.00 ± 0.00 | 50.00 ± 0.00 | 70.00 ± 0.00 | 90.00 (−2.00) | "
        "1.00 (+49.00) | 50 | 1,000 | 10 | 2.5 | 3 | 2 |"
    )
    (broken,) = (line for line in lines if line.startswith("| badnets | tsbd |"))
    assert "| 85.00 | 1.00 | 94.00 | - | - |" in broken
    assert broken.endswith("| 1 of 2 |")
    assert "- failed: badnets, tsbd: broke" in lines


def test_averages_are_over_attacks_with_the_paper_s_over_the_same(report):
    lines = report.to_markdown(["averages"]).splitlines()
    assert "| no defense | 91.00 | 92.50 | - | 91.00 (0.00) | - | 2 |" in lines
    assert "| ft | 88.00 | 50.00 | 70.00 | 90.00 (−2.00) | 1.00 (+49.00) | 2 |" in lines


def test_csv_has_plain_numbers_with_spread_and_difference_apart(report):
    tuned = records(report.to_csv())[1]
    assert (tuned["attack"], tuned["defense"], tuned["seeds"]) == ("badnets", "ft", "2")
    assert (tuned["ACC %"], tuned["ACC % spread"]) == ("88", "0")
    assert (tuned["their-table1 ACC"], tuned["their-table1 ACC difference"]) == ("90", "-2")
    assert tuned["samples seen"] == "1000.5"
    first = records(report.to_csv())[0]
    assert first["ACC % spread"] == "1.414214"
    assert first["DER %"] == ""


def test_seeds_stand_below_their_mean(report):
    rows = records(report.to_csv(seeds=True))
    assert [r["seeds"] for r in rows[:3]] == ["2", "seed 0", "seed 1"]
    assert [r["ACC %"] for r in rows[:3]] == ["91", "90", "92"]
    assert "| badnets | tsbd | failed | failed | failed |" in report.to_markdown(seeds=True)


def test_what_is_no_share_is_no_percentage(write_run):
    counts = [cell(seed) for seed in (0, 1)]
    for seed, one in enumerate(counts):
        one.metrics["pruned units"] = {"value": 12.0 + seed, "is_share": False}
    report = make_report([read_run(write_run(table(row("badnets", "clp", *counts))))])
    assert "| badnets | clp | 12.5 ± 0.7071 |" in report.to_markdown()
    (found,) = records(report.to_csv())
    assert (found["pruned units"], found["pruned units spread"]) == ("12.5", "0.707107")


def test_latex_escapes_and_keeps_to_booktabs(write_run):
    made = table(row("a_b", "50%&{x}\\y", cell(0, ACC=0.5), cell(1, ACC=0.6)))
    text = make_report([read_run(write_run(made, "na_me"))]).to_latex()
    assert r"a\_b & 50\%\&\{x\}\textbackslash{}y & 55.00 $\pm$ 7.07" in text
    assert r"\begin{tabular}{llrrrrrrr}" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1


def test_nothing_in_a_name_is_markup_or_a_formula(write_run):
    made = table(row("=cmd()", "x | y\n<b>*z*</b>", cell(0, ACC=0.5)))
    report = make_report([read_run(write_run(made))])
    assert r"| =cmd() | x \| y \<b\>\*z\*\</b\> |" in report.to_markdown()
    assert records(report.to_csv())[0]["attack"] == "'=cmd()"


def test_json_holds_every_seed_runs_and_published_figures(report):
    values = json.loads(report.to_json())
    tuned = values["rows"][1]
    assert tuned["published"] == {"their-table1": {"ACC": 90.0, "ASR": 1.0}}
    assert [seed["metrics"]["ACC"]["value"] for seed in tuned["seeds"]] == [0.88, 0.88]
    assert values["runs"][0]["command"] == "backdoorkit run badnets ft"
    assert values["runs"][0]["complete"] is True
    assert values["published"][0]["setting"] == "another network"


# -- what must stand below a table -----------------------------------------------------------------


def notes(*rows, **more):
    from backdoorkit.pipeline.grids import footnotes

    return "\n".join(footnotes(table(*rows, **more)))


def test_missing_controls_are_named():
    both = notes(row("badnets", "no defense", cell()), row("badnets", "tsbd", cell()))
    assert "plain fine-tuning" in both
    assert "the same model without an attack" in both


def test_controls_that_are_there_are_not_missed():
    rows = [row(a, d, cell()) for a in ("badnets", "none") for d in ("no defense", "ft (epochs=1)")]
    assert "control" not in notes(*rows)


def test_without_defenses_there_is_nothing_to_control():
    assert "control" not in notes(row("badnets", "no defense", cell()))


def test_a_preset_that_deviates_and_an_oracle_are_marked(write_run):
    made = table(
        row("badnets", "anp", Cell(seed=0, oracle=True), defense_preset="backdoorbench"),
        row("trojannn", "clp", cell(), attack_preset="trojanzoo"),
    )
    text = make_report([read_run(write_run(made))]).to_markdown()
    assert "| badnets | anp (backdoorbench) (oracle) |" in text
    assert "| trojannn (trojanzoo) | clp |" in text
    for preset in ("backdoorbench", "trojanzoo"):
        assert f"{preset}: a preset that deviates" in text


def test_a_control_with_less_than_the_others_is_told(write_run):
    more = row("badnets", "tsbd", cell(1000, ACC=0.5))  # its cost grows with the seed
    made = table(row("badnets", "ft", cell(0, ACC=0.5)), more)
    text = make_report([read_run(write_run(made))]).to_markdown()
    assert "ft saw 1,000 samples, fewer than tsbd (2,000)" in text
