"""Neural Cleanse over all classes, against one class after the other, in one run.

    python benchmarks/inversion.py
    python benchmarks/inversion.py --steps 8 --rounds 5 --threads 1

WRN-16-1, ten classes, CIFAR-10's size; every side takes the same number of Adam steps on batches of
the same 512 images:

plain    one class after the other as in released code: a DataLoader that turns each picture into
         a float32 tensor, N x C x H x W, autograd through the frozen network in eval mode, Adam
single   our own search, one class at a time (`classes_at_once = 1`)
batched  our own search, all classes (the default)

Each side in a fresh process, in turns: ours keeps freed memory as every run does, the plain loop
has what Python gives it. Processor time without the start of the process; the median over rounds.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as pictures

from backdoorkit._memory import reuse_freed_memory
from backdoorkit.context import Context
from backdoorkit.data.images import ImageSet
from backdoorkit.models._wide_resnet import WideResNet
from backdoorkit_nc import DetectionConfig
from backdoorkit_nc._inversion import invert

CLASSES, IMAGES = 10, 512
SIDES = ("plain", "single", "batched")


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """The images as pictures, made into tensors one by one."""

    def __init__(self, data: ImageSet) -> None:
        pixels = data.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.pictures = [Image.fromarray(np.asarray(image)) for image in pixels]
        self.labels = data.labels.tolist()

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return pictures.to_tensor(self.pictures[index]), self.labels[index]


def plain(model: nn.Module, data: ImageSet, steps: int, batches: int, batch_size: int) -> None:
    """The search without a controller: every class takes all of its steps."""
    loader = DataLoader(Pictures(data), batch_size=batch_size, shuffle=True, drop_last=True)
    for label in range(CLASSES):
        mask = torch.zeros(1, 1, 32, 32, requires_grad=True)
        pattern = torch.zeros(1, 3, 32, 32, requires_grad=True)
        adam = torch.optim.Adam([mask, pattern], lr=0.1, betas=(0.5, 0.9))
        stream = itertools.chain.from_iterable(itertools.repeat(loader))
        for images, _labels in itertools.islice(stream, steps * batches):
            share = (mask.tanh() + 1) / 2
            stamped = (1 - share) * images + share * (pattern.tanh() + 1) / 2
            logits = model(stamped)
            targets = torch.full((len(images),), label)
            loss = functional.cross_entropy(logits, targets) + 1e-3 * share.abs().sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
            (logits.argmax(1) == targets).float().mean().item()


def ours(model: nn.Module, data: ImageSet, options: DetectionConfig) -> None:
    context = Context(method="nc", seed=0, device=torch.device("cpu"))
    found = invert(model, data, range(CLASSES), options, context)
    if set(found.steps.tolist()) != {options.inversion_steps}:
        raise SystemExit("a class ended early: the sides did not take the same steps")


def measure(side: str, steps: int, batches: int, batch_size: int, threads: int) -> float:
    """Processor seconds of one side, in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = WideResNet(16, 1, 3, CLASSES).eval().requires_grad_(requires_grad=False)
    pixels = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8)
    data = ImageSet.from_tensors(pixels, torch.arange(IMAGES) % CLASSES)
    options = DetectionConfig(
        inversion_steps=steps,
        inversion_batches=batches,
        inversion_batch_size=batch_size,
        classes_at_once=1 if side == "single" else 0,
    )
    if side != "plain":
        reuse_freed_memory()
    start = time.process_time()
    if side == "plain":
        plain(model, data, steps, batches, batch_size)
    else:
        ours(model, data, options)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4, help="outer steps")
    parser.add_argument("--batches", type=int, default=31, help="Adam steps in each")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(measure(given.side, given.steps, given.batches, given.batch_size, given.threads))
        return
    taken: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(given.rounds):
        for name, seconds in taken.items():
            command = [sys.executable, *sys.argv, "--side", name]
            seconds.append(float(subprocess.check_output(command)))
    median = {name: statistics.median(seconds) for name, seconds in taken.items()}
    for name, seconds_taken in median.items():
        ratio = seconds_taken / median["batched"]
        print(f"{name:8} {seconds_taken:7.2f} s   batched is {ratio:.2f} x as fast")


if __name__ == "__main__":
    main()
