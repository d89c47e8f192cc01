"""ABL: isolate the samples that are learned first, then make the model forget them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import torch

from backdoorkit.api import Defense, DefenseResult, InputError
from backdoorkit_abl import ABLConfig
from backdoorkit_abl._ascent import JointAscent, ascend
from backdoorkit_abl._isolation import Isolation, isolate
from backdoorkit_abl._variants import (
    LastLayers,
    PixelNoise,
    Relabelling,
    SoftTargets,
    last_modules,
    load_all_but_head,
    pseudo_labels,
    read_weights,
    with_grad_noise,
    with_labels,
)

if TYPE_CHECKING:
    from torch import nn

    from backdoorkit.api import Context, DefenseTask, ImageSet, Structure, TrainingHooks

__all__ = ["ABL"]


class ABL(Defense[ABLConfig]):
    """Poisoned samples are learned faster than clean ones, and all towards one class.

    Stage 1 keeps the training loss at γ, where poisoned samples are below and clean ones above;
    stage 2 goes on training and unlearns those of lowest loss. The victim is not used: the model
    is a fresh one of its architecture.
    """

    def check(self, structure: Structure) -> None:
        config = self.config
        if config.unlearning in ("fine-tuning-last", "fine-tuning-imagenet"):
            structure.require_head(f"abl --unlearning {config.unlearning}")
        if config.unlearning == "fine-tuning-imagenet" and config.imagenet_weights is not None:
            read_weights(config.imagenet_weights)

    def run(self, task: DefenseTask, context: Context) -> DefenseResult:
        data = task.training_data
        if not len(data):
            raise InputError("abl needs training data, but the set is empty")
        # Before anything costs time: the weights may not fit.
        pretrained = self._pretrained(task, context)
        isolation = isolate(task.build_model(), data, self.config, context)
        if self.config.unlearning == "gga":
            model, facts = self._ascend(isolation, context)
        elif pretrained is not None:
            model, facts = pretrained, {}
            context.fit(model, isolation.rest, self.config)
        else:
            model, facts = self._alternative(isolation, task, context), {}
        positions = isolation.positions.cpu()
        return DefenseResult(
            model=model,
            details={**self._details(isolation), **facts},
            tensors={
                "isolated": positions,
                "isolated_ids": data.ids.cpu()[positions],
                "losses": isolation.losses.cpu(),
            },
        )

    def _ascend(self, isolation: Isolation, context: Context) -> tuple[nn.Module, dict[str, Any]]:
        config, model = self.config, isolation.model
        if config.gga_form == "joint":
            joint = JointAscent(isolation, config, context)
            context.fit(model, isolation.rest, config, hooks=joint)
            return model, {}
        context.fit(model, isolation.rest, config)
        return model, ascend(model, isolation.isolated, config, context)

    def _alternative(self, isolation: Isolation, task: DefenseTask, context: Context) -> nn.Module:
        """All other variants: training as in fine-tuning, on other data or in other ways."""
        config, model = self.config, isolation.model
        data: ImageSet = isolation.data
        hooks: TrainingHooks | None = None
        match config.unlearning:
            case "pixel-noise":
                generator = context.generator("pixel noise", context.device)
                hooks = PixelNoise(isolation.mask, config.pixel_noise, generator)
            case "grad-noise":
                data = with_grad_noise(isolation, config.grad_noise, context)
            case "label-shuffling":
                generator = context.generator("labels")
                hooks = Relabelling(isolation, config.relabelling, generator)
            case "label-uniform":
                hooks = SoftTargets(isolation.mask, 1.0)
            case "label-smoothing":
                hooks = SoftTargets(isolation.mask, config.smoothing)
            case "self-learning":
                data = self._relabelled(isolation, task, context)
            case "fine-tuning-all":
                data = isolation.rest
            case "fine-tuning-last":
                return self._tune_last_layers(isolation, task, context)
            case "retraining":
                model, data = task.build_model(), isolation.rest
        context.fit(model, data, config, hooks=hooks)
        return model

    def _relabelled(self, isolation: Isolation, task: DefenseTask, context: Context) -> ImageSet:
        """D with labels for D̂_b by a model that saw D̂_c alone, briefly: it may hold poison, too."""
        helper = task.build_model()
        options = attrs.evolve(self.config, epochs=self.config.helper_epochs)
        context.fit(helper, isolation.rest, options)
        isolated = isolation.isolated
        logits = context.predict(helper, isolated)
        return with_labels(isolation, pseudo_labels(logits, isolated.labels.to(logits.device)))

    def _tune_last_layers(
        self, isolation: Isolation, task: DefenseTask, context: Context
    ) -> nn.Module:
        model = isolation.model
        names = last_modules(model, context.structure(model), self.config.last_layers)
        if self.config.reset_last_layers:
            initial = task.build_model()
            for name in names:
                state = initial.get_submodule(name).state_dict()
                model.get_submodule(name).load_state_dict(state)
        with LastLayers(model, names) as hooks:
            context.fit(model, isolation.rest, self.config, hooks=hooks)
        return model

    def _pretrained(self, task: DefenseTask, context: Context) -> nn.Module | None:
        """A fresh model with ImageNet weights, where the variant wants one."""
        path = self.config.imagenet_weights
        if self.config.unlearning != "fine-tuning-imagenet" or path is None:
            return None
        model = task.build_model()
        load_all_but_head(model, read_weights(path), context.structure(model).head, path)
        return model

    def _details(self, isolation: Isolation) -> dict[str, Any]:
        mask, losses = isolation.mask, isolation.losses
        labels = isolation.isolated.labels
        return {
            "unlearning": self.config.unlearning,
            "isolated": int(mask.sum()),
            # Poisoned samples share a class: a glance tells whether isolation can have worked.
            "isolated_by_class": torch.bincount(
                labels, minlength=isolation.data.num_classes
            ).tolist(),
            "isolated_loss": float(losses[mask].mean()),
            "other_loss": float(losses[~mask].mean()),
        }
