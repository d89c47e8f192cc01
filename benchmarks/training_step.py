"""How fast the training loop and the evaluation pass are, both sides measured in one run.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --model wrn-16-1 --rounds 5 --threads 1

Sides of training, interleaved round by round on the same images (batch 128, 32 x 32, SGD with
momentum):

plain   a float32 loop as papers publish it: N x C x H x W batches, zero_grad, forward, loss,
        backward, step
bare    the fastest step by hand: bfloat16 autocast, channels-last, fused optimizer, nothing else
fit     ``backdoorkit.training.fit`` from uint8 images: the same step with batching, metrics,
        schedule, hooks, and the model put back as it was

Sides of evaluation, for ACC, ASR and RA: three plain passes (batch 1024, contiguous), the same
three passes through ``predict``, and ``evaluate``, which makes the predictions once. The three
passes leave out the target class where the metric does.

Every number is the median over rounds; ratios of process CPU time vary less than those of wall
time where other processes run. Goals: fit at least 2.4 times (PreAct-ResNet-18) and 1.8 times
(WRN-16-1) as fast as plain where the hardware multiplies bfloat16; fit within 5 % of bare.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import statistics
import time
from collections.abc import Callable

import attrs
import torch
from torch import nn
from torch.nn import functional

from backdoorkit import TrainOptions
from backdoorkit.data.images import ImageSet
from backdoorkit.evaluation import evaluate, predict
from backdoorkit.models.catalog import backdoorkit_models
from backdoorkit.training import fit, resolve_precision

BATCH = 128
CLASSES = 10
#: steps of one round: enough that what fit does once per call weighs as little as in practice
STEPS = {"preact-resnet-18": 4, "wrn-16-1": 24}
#: images of one evaluation
IMAGES = {"preact-resnet-18": 256, "wrn-16-1": 2048}
OPTIONS = TrainOptions(epochs=1, batch_size=BATCH, learning_rate=0.01, schedule="constant")


def build(name: str) -> nn.Module:
    """The untrained architecture of that name, with the same weights every time."""
    info = next(info for info in backdoorkit_models() if info.name == name)
    module, _, attribute = info.implementation.partition(":")
    architecture = getattr(importlib.import_module(module), attribute)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return architecture(info.config()).build((3, 32, 32), CLASSES)


def images(count: int) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return ImageSet.from_tensors(pixels, labels, num_classes=CLASSES)


@attrs.frozen
class Seconds:
    wall: float
    cpu: float


def measured(sides: dict[str, Callable[[], None]], rounds: int) -> dict[str, Seconds]:
    """Median seconds of every side; the first round only warms up."""
    taken: dict[str, list[Seconds]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            side()
            spent = Seconds(time.perf_counter() - wall, time.process_time() - cpu)
            if number:
                taken[name].append(spent)
    return {
        name: Seconds(
            statistics.median(one.wall for one in all_),
            statistics.median(one.cpu for one in all_),
        )
        for name, all_ in taken.items()
    }


def step_by_hand(
    model: nn.Module, data: ImageSet, device: torch.device, *, is_fast: bool
) -> Callable[[], None]:
    """``plain`` and ``bare``: the batches lie ready on the device as float32."""
    layout = torch.channels_last if is_fast else torch.contiguous_format
    model.to(device, memory_format=layout).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=is_fast
    )
    ready = [
        ((pixels.to(device) / 255).contiguous(memory_format=layout), labels.to(device))
        for pixels, labels in zip(data.images.split(BATCH), data.labels.split(BATCH), strict=True)
    ]
    precision = resolve_precision("auto", device) if is_fast else None

    def steps() -> None:
        for pixels, labels in ready:
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=precision is not None):
                loss = functional.cross_entropy(model(pixels).float(), labels)
            loss.backward()
            optimizer.step()
        synchronize(device)

    return steps


def step_by_fit(model: nn.Module, data: ImageSet, device: torch.device) -> Callable[[], None]:
    data = data.to(device)

    def steps() -> None:
        fit(
            model,
            data,
            OPTIONS,
            device=device,
            shuffle_generator=torch.Generator().manual_seed(0),
            augmentation_generator=torch.Generator().manual_seed(1),
        )
        synchronize(device)

    return steps


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def training_sides(name: str, device: torch.device) -> dict[str, Callable[[], None]]:
    data = images(BATCH * STEPS[name])
    model = build(name)
    return {
        "plain": step_by_hand(copy.deepcopy(model), data, device, is_fast=False),
        "bare": step_by_hand(copy.deepcopy(model), data, device, is_fast=True),
        "fit": step_by_fit(copy.deepcopy(model), data, device),
    }


def evaluation_sides(name: str, device: torch.device) -> dict[str, Callable[[], None]]:
    clean = images(IMAGES[name])
    everyone = torch.arange(len(clean))
    triggered = clean.replaced(everyone, 255 - clean.images, clean.labels)
    eligible = triggered.subset((clean.labels != 0).nonzero().flatten())
    model = build(name).to(device)

    def plain_pass(data: ImageSet) -> None:
        model.eval()
        with torch.no_grad():
            for pixels in data.images.split(1024):
                model(pixels.to(device) / 255)

    def three_plain() -> None:
        for data in (clean, eligible, eligible):
            plain_pass(data)
        synchronize(device)

    def three_predicted() -> None:
        for data in (clean, eligible, eligible):
            predict(model, data, device=device)
        synchronize(device)

    def once() -> None:
        evaluate(model, clean, triggered, targets=torch.zeros_like(clean.labels), device=device)

    return {"three plain": three_plain, "three predicted": three_predicted, "evaluate": once}


def show(title: str, taken: dict[str, Seconds], units: int, unit: str) -> None:
    first = next(iter(taken.values()))
    print(f"\n{title}")
    for name, one in taken.items():
        print(
            f"  {name:16s} {1000 * one.wall / units:9.2f} ms wall, "
            f"{1000 * one.cpu / units:9.2f} ms CPU per {unit}; "
            f"{first.wall / one.wall:5.2f}x wall, {first.cpu / one.cpu:5.2f}x CPU"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Training loop and evaluation against plain code")
    parser.add_argument("--model", choices=sorted(STEPS), action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    precision = resolve_precision("auto", device) or torch.float32
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, {precision}")
    for name in arguments.model or sorted(STEPS):
        taken = measured(training_sides(name, device), arguments.rounds)
        show(f"{name}: training, batch {BATCH}", taken, STEPS[name], "step")
        bare, ours = taken["bare"], taken["fit"]
        print(
            f"  fit over bare: {100 * (ours.wall / bare.wall - 1):+.1f} % wall, "
            f"{100 * (ours.cpu / bare.cpu - 1):+.1f} % CPU"
        )
        taken = measured(evaluation_sides(name, device), arguments.rounds)
        show(f"{name}: ACC, ASR and RA of {IMAGES[name]} images", taken, 1, "evaluation")


if __name__ == "__main__":
    main()
