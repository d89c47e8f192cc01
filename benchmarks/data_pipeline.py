"""Speed of the training input pipeline against the usual one, both measured in one run.

    python benchmarks/data_pipeline.py

Ours: a uint8 tensor in memory, shuffled batches, random crop (zero padding 4), random mirroring,
normalisation, all as batched tensor operations. The usual one: torchvision's RandomCrop(32, 4),
RandomHorizontalFlip, ToTensor and Normalize on PIL images, in a DataLoader with 0 and with 2
workers. Both sides see the same random 32 x 32 RGB images in batches of 128, normalise by the same
constants, and end with float32 batches on the CPU; the labels are touched so that nothing is left
out. Passes of both sides alternate, and the median counts, because other programs share the
machine. Tensor operations get one thread (``--threads``): on a busy machine, more of them would
measure how threads wait for each other. With ``--device cuda`` batches end on the accelerator.

Takes less than a minute on two cores. ``--json`` prints one line for a machine to read.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from backdoorkit.api import Augmentation, ImageSet, batches

BATCH_SIZE = 128
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Pictures(Dataset):
    """What torchvision's CIFAR-10 does: an array row becomes a PIL image, then the transforms."""

    def __init__(self, pixels, labels):
        self.pixels, self.labels = pixels, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.pixels[index])), int(self.labels[index])


def ours(data, device):
    """Seconds of one pass."""
    mean = torch.tensor(MEAN, device=device).view(3, 1, 1)
    std = torch.tensor(STD, device=device).view(3, 1, 1)
    shuffle, draws = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    total = torch.zeros((), dtype=torch.int64, device=device)
    begin = time.perf_counter()
    for batch in batches(
        data,
        BATCH_SIZE,
        generator=shuffle,
        augmentation=Augmentation(crop_padding=4, horizontal_flip=True),
        augmentation_generator=draws,
        device=device,
    ):
        batch.images.sub_(mean).div_(std)
        total += batch.labels.sum()
    int(total)  # waits for the device
    return time.perf_counter() - begin


def usual(loader, device):
    """Seconds of one pass, starting its workers included."""
    total = torch.zeros((), dtype=torch.int64, device=device)
    begin = time.perf_counter()
    for images, labels in loader:
        images.to(device, non_blocking=True)
        total += labels.to(device, non_blocking=True).sum()
    int(total)
    return time.perf_counter() - begin


def measure(count, passes, device):
    """Images per second of each side."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = torch.arange(count) % 10
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    data = ImageSet.from_tensors(images, labels).to(device)
    pictures = Pictures(pixels, labels.numpy())

    def loader(workers):
        return DataLoader(
            pictures,
            BATCH_SIZE,
            shuffle=True,
            num_workers=workers,
            pin_memory=device.type == "cuda",
        )

    sides = {
        "backdoorkit": lambda: ours(data, device),
        "PIL, DataLoader(0 workers)": lambda: usual(loader(0), device),
        "PIL, DataLoader(2 workers)": lambda: usual(loader(2), device),
    }
    for run in sides.values():
        run()
    seconds = {name: [] for name in sides}
    for _ in range(passes):
        for name, run in sides.items():
            seconds[name].append(run())
    return {name: count / statistics.median(values) for name, values in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rates = measure(options.images, options.passes, options.device)
    best = max(rate for name, rate in rates.items() if name != "backdoorkit")
    facts = {
        "images_per_second": {name: round(rate) for name, rate in rates.items()},
        "ratio_to_best_usual": round(rates["backdoorkit"] / best, 1),
        "device": options.device.type,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if options.json:
        print(json.dumps(facts))
        return
    print(f"torch {facts['torch']}, {facts['device']}, threads: {facts['threads']}")
    for name, rate in rates.items():
        print(f"{name:28} {rate:10,.0f} images/s   ours is {rates['backdoorkit'] / rate:5.1f}x")


if __name__ == "__main__":
    main()
