"""A plugin for the tests: an attack, a metric, and a defense that can bring its worker down."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import attrs

from backdoorkit import MethodInfo, Need, PoisonOptions, Stage, hookimpl, option
from backdoorkit.api import Attack, Defense, DefenseResult, Metric, MetricValue
from backdoorkit.testing.tiny import PatchTrigger


@attrs.frozen(kw_only=True)
class NoOptions:
    """Nothing to choose."""


@attrs.frozen(kw_only=True)
class FragileOptions:
    """When it dies."""

    life: str = option(help="Folder below FRAGILE_FOLDER, with one file for each death to come.")
    seconds: float = option(0.0, help="How long it works before it is done.")


class Corner(Attack[PoisonOptions]):
    def prepare(self, data, context):
        return PatchTrigger()

    def restore(self, state):
        return PatchTrigger()


class Fragile(Defense[FragileOptions]):
    def run(self, task, context):
        folder = Path(os.environ["FRAGILE_FOLDER"]) / self.config.life
        for file in folder.glob("death*"):
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        (folder / f"working-{os.getpid()}").touch()
        for _ in context.track(range(round(self.config.seconds * 10)), "working"):
            time.sleep(0.1)
        return DefenseResult(model=task.model)


class Hits(Metric[NoOptions]):
    def compute(self, evaluation):
        clean = evaluation.clean
        hits = int((clean.predicted == clean.labels).sum())
        return {"ACC": MetricValue(value=hits / len(clean.labels), numerator=hits)}


def _info(name, implementation, config, **more):
    target = f"fragile:{implementation}"
    return MethodInfo(name=name, summary="A toy.", implementation=target, config=config, **more)


@hookimpl
def backdoorkit_attacks():
    return [_info("corner", "Corner", PoisonOptions, stage=Stage.DATA)]


@hookimpl
def backdoorkit_defenses():
    return [_info("fragile", "Fragile", FragileOptions, needs={Need.WEIGHTS})]


@hookimpl
def backdoorkit_metrics():
    return [_info("hits", "Hits", NoOptions, needs={Need.PREDICTIONS})]
