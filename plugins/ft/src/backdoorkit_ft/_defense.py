"""Fine-tuning: minimise cross-entropy on the clean reserve, starting from the victim."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from backdoorkit.api import Defense, DefenseResult, InputError, SecondGradient
from backdoorkit_ft import FineTuningConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from backdoorkit.api import Batch, Context, DefenseTask, Structure

__all__ = ["FineTuning", "FrozenStatistics"]

_NORMS = ("batch-norm", "layer-norm", "group-norm", "instance-norm", "rms-norm")


class FineTuning(Defense[FineTuningConfig]):
    """θ* = argmin over θ of E[ℓ(f(x; θ), y)] on the reserve, started at the victim's weights.

    With a sharpness radius ρ, of the largest such loss within ρ of θ, to first order.
    """

    def check(self, structure: Structure) -> None:
        method = f"ft --scope {self.config.scope}"
        match self.config.scope:
            case "head":
                structure.require_head(method)
            case "norm":
                structure.require_layers(method, *_NORMS, shortcuts=True)
            case "last-stages":
                # One stage more, so that there is something to freeze.
                structure.require_stages(method, self.config.last_stages + 1)
            case "all":
                pass

    def run(self, task: DefenseTask, context: Context) -> DefenseResult:
        if not len(task.clean):
            raise InputError("ft needs clean samples, but the reserve is empty; raise its size")
        model, config = task.model, self.config
        if config.scope != "all":
            trained = _in_scope(model, context.structure(model), config)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in trained)
        make_hooks = FrozenStatistics if config.freeze_norm_statistics else SecondGradient
        hooks = make_hooks(radius=config.sharpness_radius)
        summary = context.fit(model, task.clean, config, hooks=hooks)
        return DefenseResult(
            model=model,
            details={
                "scope": config.scope,
                "trained_parameters": sum(
                    parameter.numel() for parameter in model.parameters() if parameter.requires_grad
                ),
                "epochs": summary.epochs_run,
            },
        )


class FrozenStatistics(SecondGradient):
    """Batch norm normalises by the victim's running statistics, and they stay as they are."""

    def backward(
        self, model: nn.Module, batch: Batch, compute_loss: Callable[[], Tensor]
    ) -> Tensor:
        # The loop puts the whole model into train mode at the start of every epoch.
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()
        return super().backward(model, batch, compute_loss)


def _in_scope(model: nn.Module, structure: Structure, config: FineTuningConfig) -> set[str]:
    """Names of the parameters that are trained."""
    if config.scope == "head":
        return _below(model, structure.head)
    if config.scope == "norm":
        return {
            name for layer in structure.layers(*_NORMS, shortcuts=True) for name in layer.parameters
        }
    boundary = structure.require_stages("ft --scope last-stages", config.last_stages + 1)[0]
    first = structure.trunk.index(boundary) + 1
    trained = _below(model, structure.head, *structure.trunk[first:])
    frozen = _below(model, *structure.trunk[:first])
    # What is registered before the frozen part (a patch embedding, a class token) is frozen too,
    # and what comes after it (a last norm) is trained.
    names = [name for name, _ in model.named_parameters()]
    last = max(position for position, name in enumerate(names) if name in frozen)
    return trained.union(names[last + 1 :]) - frozen


def _below(model: nn.Module, *modules: str) -> set[str]:
    return {
        f"{module}.{name}"
        for module in modules
        for name, _ in model.get_submodule(module).named_parameters()
    }
