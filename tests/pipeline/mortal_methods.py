"""Defenses that bring down the process they run in, for tests of what is done about it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import attrs

from backdoorkit import MethodInfo, Need, hookimpl, option
from backdoorkit.api import Context, Defense, DefenseResult, DefenseTask


@attrs.frozen(kw_only=True)
class MortalOptions:
    """When it dies."""

    life: str = option(help="Folder, below MORTAL_FOLDER, with one file for each death to come.")
    seconds: float = option(0.0, help="How long it works before it is done.")


class Mortal(Defense[MortalOptions]):
    """Takes a file out of the folder and dies; lives where there is none left."""

    def run(self, task: DefenseTask, context: Context) -> DefenseResult:
        folder = Path(os.environ["MORTAL_FOLDER"]) / self.config.life
        for file in folder.glob("death*"):
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        (folder / f"working-{os.getpid()}").touch()
        sys.stdout.write("a method writes to standard output\n")
        for _ in context.track(range(round(self.config.seconds * 10)), "working"):
            time.sleep(0.1)
        return DefenseResult(model=task.model)


@hookimpl
def backdoorkit_defenses() -> list[MethodInfo]:
    return [
        MethodInfo(
            name="mortal",
            summary="A toy.",
            implementation="mortal_methods:Mortal",
            config=MortalOptions,
            needs=frozenset({Need.WEIGHTS}),
        )
    ]
