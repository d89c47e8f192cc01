"""A run's table as Markdown, with costs and the papers' figures beside it.

    python benchmarks/matrix_table.py STORE/runs/NAME/table.json

Percent; mean ± sample standard deviation over the run's seeds. Published figures come from
``published_figures.toml``: accuracy / attack success as printed, by the same attack and defense.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tomllib
from pathlib import Path
from typing import Any

from backdoorkit.pipeline.results import NO_DEFENSE, percent

FIGURES = Path(__file__).with_name("published_figures.toml")
HEADER = (
    "attack",
    "defense",
    "ACC",
    "ASR",
    "RA",
    "DER",
    "clean samples",
    "samples seen",
    "gradient steps",
    "seconds",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("table", type=Path, help="table.json of a run")
    parser.add_argument(
        "--figures",
        nargs="+",
        default=["tsbd-table1", "abl-cifar10"],
        help="tables of published figures, each a column",
    )
    arguments = parser.parse_args()
    rows = json.loads(arguments.table.read_text(encoding="utf-8"))["rows"]
    published = tomllib.loads(FIGURES.read_text(encoding="utf-8"))
    print("| " + " | ".join((*HEADER, *arguments.figures)) + " |")
    print("|" + "---|" * (len(HEADER) + len(arguments.figures)))
    for row in rows:
        figures = [printed(published[name], row) for name in arguments.figures]
        print("| " + " | ".join((*cells(row), *figures)) + " |")


def cells(row: dict[str, Any]) -> list[str]:
    """The run's own columns; a seed that failed says so."""
    seeds = [seed for seed in row["seeds"] if seed["error"] is None]
    failed = len(row["seeds"]) - len(seeds)
    name = row["defense"] + (" (oracle)" if row["oracle"] else "")
    if failed:
        name += f" ({failed} of {len(row['seeds'])} failed)"
    shares = [with_spread(row["mean"].get(c), row["spread"].get(c)) for c in HEADER[2:6]]
    costs = [
        mean(seed["cost"][key] for seed in seeds) for key in ("samples_seen", "gradient_steps")
    ]
    clean = mean(seed["clean_samples"] for seed in seeds)
    seconds = mean(seed["cost"]["seconds"] for seed in seeds)
    return [row["attack"], name, *shares, clean, *costs, seconds]


def with_spread(value: float | None, spread: float | None) -> str:
    return percent(value) if spread is None else f"{percent(value)} ± {percent(spread)}"


def mean(values: Any) -> str:
    numbers = list(values)
    return f"{statistics.fmean(numbers):,.0f}" if numbers else "-"


def printed(figures: dict[str, Any], row: dict[str, Any]) -> str:
    """ACC / ASR of a paper for the same attack and defense; a dash where it has none."""
    attack = "clean" if row["attack"] == "none" else row["attack"]
    defense = "none" if row["defense"] == NO_DEFENSE else row["defense"]
    values = figures.get(attack, {}).get(defense)
    if values is None:
        return "-"
    both = dict(zip(figures["columns"], values, strict=False))
    return f"{both['ACC']:.2f} / {both['ASR']:.2f}"


if __name__ == "__main__":
    main()
