"""Methods that bring down the process they run in, for tests of what is done about it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import attrs
import torch
from torch import nn

from backdoorkit import MethodInfo, Need, hookimpl, option
from backdoorkit.api import Architecture, Context, Defense, DefenseResult, DefenseTask


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


@attrs.frozen(kw_only=True)
class MortalNetworkOptions:
    """Who dies, and how."""

    life: str = option(help="Folder, below MORTAL_FOLDER, with one file for each death to come.")
    rank: str = option("1", help="The process of a team whose forward pass it is.")
    by_error: bool = option(False, help="Raise an error instead of dying.")


class MortalNetwork(Architecture[MortalNetworkOptions]):
    """A network one of whose training steps ends the process, for each file in the folder."""

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        network = nn.Sequential(
            nn.Conv2d(image_shape[0], 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.LazyLinear(num_classes),
        )
        network(torch.zeros(2, *image_shape))
        network.register_forward_pre_hook(self._end)
        return network

    def _end(self, network: nn.Module, _: object) -> None:
        if not network.training or os.environ.get("RANK") != self.config.rank:
            return
        for file in (Path(os.environ["MORTAL_FOLDER"]) / self.config.life).glob("death*"):
            file.unlink()
            if self.config.by_error:
                raise RuntimeError("no memory is left")
            os.kill(os.getpid(), signal.SIGKILL)


@hookimpl
def backdoorkit_models() -> list[MethodInfo]:
    return [
        MethodInfo(
            name="mortal-network",
            summary="A toy.",
            implementation="mortal_methods:MortalNetwork",
            config=MortalNetworkOptions,
        )
    ]


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
