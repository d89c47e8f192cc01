"""What Neural Cleanse's two ways to compare classes say of searches that are in the store.

    python benchmarks/outlier_tests.py backdoorkit-runs/runs/detection-digits-41819521 [RUN ...]

Reads the norms of every search in the runs' records, of detector and defense. Both ways have the
same false alarm rate here, that of their theory; the fixed threshold of 2 stands beside them.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from backdoorkit_nc._anomaly import anomaly, null_indices, p_value
from backdoorkit_nc._log_sizes import log_size_indices, null_scores


def searches(run: Path) -> list[tuple[str, list[float]]]:
    """Label of the step and norms by class, for every search."""
    steps: list[dict[str, Any]] = json.loads((run / "record.json").read_text())["steps"]
    details = [(step["label"], (step["facts"] or {}).get("details", {})) for step in steps]
    return [(label, found["norms"]) for label, found in details if "norms" in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="their folders")
    parser.add_argument("--rate", type=float, default=0.05, help="false alarm rate")
    given = parser.parse_args()
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    print(f"{'index':>7} {'p':>7} {'log index':>9} {'p':>7}  class  what")
    for run in given.runs:
        for label, listed in searches(run):
            norms = torch.tensor(listed, dtype=torch.float64)
            first = float(anomaly(norms).indices.max())
            second = float(log_size_indices(norms).max())
            p_first = p_value(first, null_indices(len(norms)))
            p_second = p_value(second, null_scores(len(norms)))
            print(
                f"{first:7.2f} {p_first:7.4f} {second:9.2f} {p_second:7.4f}  "
                f"{int(norms.argmin()):5}  {run.name}: {label}"
            )
            said = [True, first > 2, p_first <= given.rate, p_second <= given.rate]
            group = f"{run.name}: {label.rpartition(', seed')[0] or label}"
            counts[group] = [a + b for a, b in zip(counts[group], said, strict=True)]
    print("\nmodels  index > 2  deviations  log-sizes")
    for group, (models, *flagged) in counts.items():
        print(f"{models:6}  {flagged[0]:9}  {flagged[1]:10}  {flagged[2]:9}  {group}")


if __name__ == "__main__":
    main()
