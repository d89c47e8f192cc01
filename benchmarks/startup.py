"""How long light commands take with many plugins installed, beside what importing torch takes.

    python benchmarks/startup.py [--plugins 30] [--repeats 15] [--json]

Writes dummy plugins with their metadata into a temporary folder, puts it on the path, and runs
each command in fresh interpreters. Smallest and median wall time and processor time are given:
the smallest is what the command costs, the median what one waits on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODULE = """
from typing import Literal

import attrs

from backdoorkit import MethodInfo, Need, Stage, hookimpl, option


@attrs.frozen(kw_only=True)
class Config:
    ratio: float = option(0.5, ge=0, le=1, help="A share.")
    rounds: int = option(3, ge=1, help="How often.")
    mode: Literal["sgd", "adam"] = option("sgd", help="How.")
    levels: tuple[float, ...] = option((0.25, 0.5), ge=0, le=1, help="Where.")


@hookimpl
def backdoorkit_defenses():
    return [
        MethodInfo(
            name="dummy-{number}",
            summary="A method that is never run.",
            reference="Nobody, Nowhere, 2024",
            implementation="backdoorkit_dummy_{number}._defense:Dummy",
            config=Config,
            stage=Stage.POST_TRAINING,
            needs={{Need.WEIGHTS}},
        )
    ]
"""

CLI = [sys.executable, "-c", "from backdoorkit.cli import main; main()"]
COMMANDS = {
    "python, nothing": [sys.executable, "-c", "pass"],
    "backdoorkit --help": [*CLI, "--help"],
    "backdoorkit plugins list": [*CLI, "plugins", "list"],
    "backdoorkit plugins list --json": [*CLI, "plugins", "list", "--json"],
    "backdoorkit plugins show dummy-1": [*CLI, "plugins", "show", "dummy-1"],
    "backdoorkit run dummy-1 --help": [*CLI, "run", "dummy-1", "--help"],
    "python, import torch": [sys.executable, "-c", "import torch"],
}


def install_dummies(folder: Path, count: int) -> None:
    """Modules and metadata as pip would leave them."""
    for number in range(count):
        (folder / f"backdoorkit_dummy_{number}.py").write_text(MODULE.format(number=number))
        info = folder / f"backdoorkit_dummy_{number}-1.0.dist-info"
        info.mkdir()
        name = f"Name: backdoorkit-dummy-{number}"
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\n{name}\nVersion: 1.0\n")
        entry = f"dummy-{number} = backdoorkit_dummy_{number}"
        (info / "entry_points.txt").write_text(f"[backdoorkit]\n{entry}\n")


def measure(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall and processor milliseconds of one run."""
    started = time.perf_counter()
    with open(os.devnull, "wb") as nowhere:
        process = subprocess.Popen(command, env=environment, stdout=nowhere, stderr=nowhere)
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return 1000 * wall, 1000 * (usage.ru_utime + usage.ru_stime)


def measure_all(plugins: int, repeats: int) -> dict[str, dict[str, float]]:
    """All commands in turn, so that a busy moment hits each of them alike."""
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        install_dummies(Path(folder), plugins)
        environment = os.environ | {"PYTHONPATH": folder}
        for command in COMMANDS.values():  # writes the bytecode
            measure(command, environment)
        for _ in range(repeats):
            for name, command in COMMANDS.items():
                runs[name].append(measure(command, environment))
    return {name: summarise(times) for name, times in runs.items()}


def summarise(times: list[tuple[float, float]]) -> dict[str, float]:
    wall, processor = zip(*times, strict=True)
    return {
        "wall_ms_min": round(min(wall), 1),
        "wall_ms_median": round(statistics.median(wall), 1),
        "processor_ms_min": round(min(processor), 1),
        "processor_ms_median": round(statistics.median(processor), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plugins", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = measure_all(arguments.plugins, arguments.repeats)
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    print(f"{arguments.plugins} dummy plugins, {arguments.repeats} runs each, milliseconds")
    print(f"{'':34}{'wall: min':>10}{'median':>9}{'processor: min':>16}{'median':>9}")
    for name, row in results.items():
        values = list(row.values())
        print(f"{name:34}{values[0]:10.1f}{values[1]:9.1f}{values[2]:16.1f}{values[3]:9.1f}")


if __name__ == "__main__":
    main()
