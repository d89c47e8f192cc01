"""A network whose backdoor is written down by hand, so that every number is known."""

from __future__ import annotations

import torch
from torch import nn

from backdoorkit import Need
from backdoorkit.api import Context, DefenseTask
from backdoorkit_clp import CLPConfig
from backdoorkit_clp._defense import CLP

CLASSES = 16
SIDE = 16


class Planted(nn.Module):
    """Channel k sees the left of row k; the last channel sees the trigger's corner alone."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, CLASSES + 1, SIDE)
        self.norm = nn.BatchNorm2d(CLASSES + 1)
        self.head = nn.Linear(CLASSES + 1, CLASSES)
        with torch.no_grad():
            for layer in (self.conv, self.head):
                layer.weight.zero_()
                layer.bias.zero_()
            for row in range(CLASSES):
                self.conv.weight[row, 0, row, :6] = 1 / 6
                self.head.weight[row, row] = 10.0
            self.conv.weight[-1, 0, -2:, -2:] = 1.0
            self.conv.bias[-1] = -2.0
            self.head.weight[0, -1] = 30.0

    def forward(self, images):
        return self.head(torch.relu(self.norm(self.conv(images))).flatten(1))


def planted_images(count):
    generator = torch.Generator().manual_seed(0)
    images = 0.35 * torch.rand(count, 1, SIDE, SIDE, generator=generator)
    labels = torch.arange(count) % CLASSES
    images[torch.arange(count), 0, labels, :6] += 0.4
    triggered = images.clone()
    triggered[:, :, -2:, -2:] = 1.0
    return images, triggered, labels


def share(model, images, labels):
    with torch.inference_mode():
        return (model(images).argmax(1) == labels).float().mean().item()


def test_the_trigger_channel_alone_is_cut_and_the_backdoor_with_it():
    model = Planted().eval()
    images, triggered, labels = planted_images(64)
    target = torch.zeros_like(labels)
    others = labels != 0
    assert share(model, images, labels) == 1.0
    assert share(model, triggered[others], target[others]) == 1.0

    task = DefenseTask(
        method="clp",
        num_classes=CLASSES,
        image_shape=(1, SIDE, SIDE),
        resources={Need.WEIGHTS: model},
    )
    context = Context(
        method="clp",
        seed=0,
        device=torch.device("cpu"),
        image_shape=task.image_shape,
        num_classes=CLASSES,
    )
    result = CLP(CLPConfig()).run(task, context)

    assert result.details["pruned"] == {"norm": [CLASSES]}
    assert share(result.model, images, labels) == 1.0
    assert share(result.model, triggered[others], labels[others]) == 1.0
