"""Accuracy of each class, and what poisoning takes, for every victim of a run.

    python benchmarks/victims.py backdoorkit-runs/runs/victim-zoo-41819521
    python benchmarks/victims.py FOLDER --images 50000 --threads 1

The run must be finished. Its triggers are applied to random images of the data's size, all at once
as a run does it; processor time, one round.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from backdoorkit._progress import SILENT
from backdoorkit.data.poison import apply_trigger
from backdoorkit.hooks.registry import load_registry
from backdoorkit.pipeline.fingerprints import plan_of
from backdoorkit.pipeline.plan import Step, StepKind
from backdoorkit.pipeline.recipe import Recipe
from backdoorkit.pipeline.store import Store
from backdoorkit.pipeline.workshop import Workshop


def class_accuracies(workshop: Workshop, evaluation: Step) -> list[float]:
    """In percent, by class."""
    stored = load_file(workshop.artifact(evaluation).file("predictions.safetensors"))
    right = stored["clean.logits"].argmax(dim=1) == stored["clean.labels"]
    classes = range(int(stored["clean.labels"].max()) + 1)
    return [100 * right[stored["clean.labels"] == k].float().mean().item() for k in classes]


def poisoning_seconds(workshop: Workshop, victim: Step, count: int) -> float:
    """Of all triggers of the victim, on ``count`` images."""
    attack = workshop.attack(victim)
    if attack is None:
        return 0.0
    shape = workshop.artifact(victim.inputs["data"]).facts["image_shape"]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    labels, ids = torch.ones(count, dtype=torch.int64), torch.arange(count)
    start = time.process_time()
    for trigger in attack[1]:
        apply_trigger(trigger, images, labels, ids)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="its folder")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    registry = load_registry()
    recipe = Recipe.from_file(given.run / "recipe.toml", registry)
    workshop = Workshop(
        registry=registry,
        store=Store(given.run.resolve().parents[1]),
        device=torch.device("cpu"),
        oracle=False,
        progress=SILENT,
    )
    print(f"{'attack':20} poisoning s  ACC % of class 0, 1, ...")
    for step in plan_of(recipe, registry).of_kind(StepKind.EVALUATE):
        victim = step.inputs["victim"]
        if step.inputs.get("model", victim) is not victim:
            continue
        seconds = poisoning_seconds(workshop, victim, given.images)
        shown = " ".join(f"{value:5.1f}" for value in class_accuracies(workshop, step))
        print(f"{victim.choices['attack'].name:20} {seconds:11.2f}  {shown}")


if __name__ == "__main__":
    main()
