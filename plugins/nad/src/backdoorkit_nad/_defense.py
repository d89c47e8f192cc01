"""NAD: the victim, fine-tuned while its attention follows that of its own fine-tuned copy."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import attrs
import torch
from torch import nn

from backdoorkit.api import Defense, DefenseResult, InputError, StructureError
from backdoorkit_nad import NADConfig
from backdoorkit_nad._distillation import AttentionDistillation, Cutout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backdoorkit.api import Context, DefenseTask, ImageSet, Structure

__all__ = ["NAD", "compared_layers", "map_sizes"]


class NAD(Defense[NADConfig]):
    """Fine-tuning weakens the backdoor in the teacher; following it, the student loses it."""

    def check(self, structure: Structure) -> None:
        compared_layers(structure, self.config)

    def run(self, task: DefenseTask, context: Context) -> DefenseResult:
        if not len(task.clean):
            raise InputError("nad needs clean samples, but the reserve is empty; raise its size")
        config, student, reserve = self.config, task.model, task.clean
        structure = context.structure(student)
        beta = compared_layers(structure, config)
        sizes = map_sizes(student, structure, list(beta), task.image_shape, context.device)

        teacher = self._teacher(student, reserve, context)
        with structure.feature_maps(student, list(beta)) as maps:
            distillation = AttentionDistillation(
                maps,
                teacher,
                structure,
                beta,
                distance=config.distance,
                power=config.power,
                cutout=config.cutout,
                generator=context.generator("student's cutout"),
            )
            summary = context.fit(student, reserve, config, hooks=distillation)
        return DefenseResult(
            model=student,
            details={
                "stages": [
                    {
                        "layer": name,
                        "map": list(sizes[name]),
                        "beta": weight,
                        "last_distance": distillation.distances.get(name),
                    }
                    for name, weight in beta.items()
                ],
                "distance": config.distance,
                "teacher_epochs": config.teacher_epochs,
                "teacher_accuracy": context.accuracy(teacher, reserve),
                "epochs": summary.epochs_run,
            },
        )

    def _teacher(self, victim: nn.Module, reserve: ImageSet, context: Context) -> nn.Module:
        """A copy of the victim, fine-tuned; the student starts from the victim, not from here."""
        config = self.config
        options = attrs.evolve(
            config,
            epochs=config.teacher_epochs,
            learning_rate=config.teacher_learning_rate,
            schedule=config.teacher_schedule,
            milestones=config.teacher_milestones,
        )
        teacher = copy.deepcopy(victim)
        cutout = Cutout(config.cutout, context.generator("teacher's cutout"))
        context.fit(teacher, reserve, options, hooks=cutout)
        return teacher


def compared_layers(structure: Structure, config: NADConfig) -> dict[str, float]:
    """Layers whose attention is compared, first to last, each with its β."""
    if config.layers:
        return dict(zip(config.layers, config.beta, strict=True))
    structure.require_stages("nad")
    count = min(len(structure.stages), len(config.beta))
    return dict(zip(structure.stages[-count:], config.beta[-count:], strict=True))


def map_sizes(
    model: nn.Module,
    structure: Structure,
    names: Sequence[str],
    image_shape: tuple[int, int, int],
    device: torch.device,
) -> Mapping[str, tuple[int, int]]:
    """Height and width of the feature maps of ``names``; refuses what is none, or one pixel.

    The attention map of one pixel is 1 whatever the image: its distance and gradient are zero.
    """
    with torch.no_grad(), structure.feature_maps(model, names) as maps:
        model(torch.full((1, *image_shape), 0.5, device=device))
    sizes: dict[str, tuple[int, int]] = {}
    for name in names:
        output = maps.get(name)
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else ()
        if len(shape) != 4 or shape[2] * shape[3] == 1:
            came = " x ".join(map(str, shape[1:])) or "nothing of that kind"
            raise StructureError(
                f"nad compares feature maps of C x H x W with more than one pixel, and {name!r} "
                f"gives {came}; name layers before the pooling, or leave 'layers' empty"
            )
        sizes[name] = (shape[2], shape[3])
    return sizes
