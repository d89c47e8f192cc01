"""Writes what happens in a run as TensorBoard logs, one series per victim."""

from __future__ import annotations

import datetime
import math
import re
from typing import TYPE_CHECKING, Any

from torch.utils.tensorboard import SummaryWriter

from backdoorkit.api import Observer, contact_sheet
from backdoorkit_tensorboard import TensorBoardConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["TensorBoard"]

#: Tag of the series that is about the whole run.
_WHOLE = "run"


class TensorBoard(Observer[TensorBoardConfig]):
    """One folder of logs per run, in it one series per victim, and one for the whole run.

    TensorBoard shows series in one chart where they share a tag, so that tags here are what is
    measured: ``training/loss``, ``ACC/ft``, and so on.
    """

    def __init__(self, config: TensorBoardConfig) -> None:
        super().__init__(config)
        self._folder: Path | None = None
        self._writers: dict[str, SummaryWriter] = {}

    def run_begin(self, run: Any) -> None:
        started = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H-%M-%S-%f")
        if self.config.folder is None:
            self._folder = run.directory / "tensorboard" / started
        else:
            self._folder = self.config.folder / f"{run.directory.name}-{started}"
        self._write_text("recipe", run.recipe.to_toml(), 0)

    def step_end(self, run: Any, result: Any, seconds: float) -> None:
        if result.artifact is None:
            return
        key, entries = result.step.key, run.plan.entries
        # A step may serve several entries; a victim is shown once.
        victim = next((entry for entry in entries if entry.victim.key == key), None)
        if victim is not None:
            self._victim(_series(victim, entries), result.artifact)
        for entry in entries:
            if entry.measure is not None and entry.measure.key == key:
                metrics = result.artifact.read_json("metrics.json")
                self._metrics(_series(entry, entries), entry.defense, metrics)

    def run_end(self, run: Any, error: BaseException | None) -> None:
        if run.table is not None:
            self._write_text("table", run.table.to_text(), 0)
        if error is not None:
            self._write_text("error", f"{type(error).__name__}: {error}", 0)
        for writer in self._writers.values():
            writer.close()

    # -- inside ------------------------------------------------------------------------------------

    def _victim(self, series: str, artifact: Any) -> None:
        """Its training by epoch, and its trigger on test images."""
        writer = self._writer(series)
        history = artifact.facts.get("training", {}).get("history", [])
        for epoch, numbers in enumerate(history, start=1):
            for name, value in numbers.items():
                if _is_number(value):
                    writer.add_scalar(f"training/{name}", value, epoch)
        if self.config.images and "samples.safetensors" in artifact.files:
            sheet = contact_sheet(artifact.file("samples.safetensors"))
            writer.add_image("samples", sheet.image, 0, dataformats="CHW")
            # The rows' titles stand beside it: TensorBoard gives pictures no captions.
            writer.add_text("samples", "; ".join(sheet.rows), 0)
        writer.flush()

    def _metrics(self, series: str, defense: str, metrics: Mapping[str, Mapping[str, Any]]) -> None:
        writer = self._writer(series)
        for column, found in metrics.items():
            if _is_number(found.get("value")):
                writer.add_scalar(f"{column}/{defense}", found["value"], 0)
        writer.flush()

    def _write_text(self, tag: str, text: str, step: int) -> None:
        """As it is: four blanks make it a block of code in Markdown."""
        block = "\n".join(f"    {line}" for line in text.splitlines())
        writer = self._writer(_WHOLE)
        writer.add_text(tag, block, step)
        writer.flush()

    def _writer(self, series: str) -> SummaryWriter:
        if series not in self._writers:
            assert self._folder is not None
            self._writers[series] = SummaryWriter(str(self._folder / series))
        return self._writers[series]


def _series(entry: Any, entries: Any) -> str:
    """The names that tell a victim from the others, as those of a folder."""
    shown = [
        str(getattr(entry, name))
        for name in ("data", "model", "attack")
        if name == "attack" or len({getattr(other, name) for other in entries}) > 1
    ]
    name = " ".join([*shown, f"seed {entry.seed}"])
    return re.sub(r"[^\w.+=,-]+", "-", name, flags=re.ASCII).strip("-.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
