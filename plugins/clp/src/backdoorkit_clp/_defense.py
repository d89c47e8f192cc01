"""Channel Lipschitzness Pruning (CLP)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from backdoorkit.api import Defense, DefenseResult, StructureError
from backdoorkit_clp import CLPConfig
from backdoorkit_clp._layers import plan_layers
from backdoorkit_clp._scores import can_have_outliers, channel_norms, outliers

if TYPE_CHECKING:
    from torch import Tensor, nn

    from backdoorkit.api import Context, DefenseTask, Structure
    from backdoorkit_clp._layers import ScoredLayer

__all__ = ["CLP"]

_LOG = logging.getLogger(__name__)


class CLP(Defense[CLPConfig]):
    """Prunes channels whose Lipschitz bound is an outlier within their layer.

    Zheng, Tang, Li, Liu, ECCV 2022. A backdoor channel has to react strongly to a small change of
    the input, so its bound s_k = σ_max(W_k) |γ_k| / √(var_k + ε) stands out; s_k > mean + u · std
    is pruned. No data, no gradients, no randomness. We changed what the score is taken from: the
    convolutions that a batch norm reads, instead of the one registered before it.
    """

    def check(self, structure: Structure) -> None:
        """Refuse a network in which no layer can be scored."""
        plan = plan_layers(structure, self.config)
        if plan.layers:
            return
        reasons = [f"{name!r}: {reason}" for name, reason in plan.skipped.items()]
        if self.config.pairing == "order":
            wanted, advice = "batch norms after convolutions", "use pairing = 'dataflow'"
        else:
            wanted = "convolutions, best with batch norm"
            advice = (
                "with proxy = true it scores rows before layer and group norms, which bounds "
                "nothing"
            )
        raise StructureError(
            f"clp needs {wanted}, and {structure.network} offers nothing to score "
            f"({reasons[0] if reasons else 'it has none'}); {advice}"
        )

    def run(self, task: DefenseTask, context: Context) -> DefenseResult:
        """Score every layer of the unpruned model, then zero the outliers."""
        model, config = task.model, self.config
        structure = context.structure(model)
        self.check(structure)
        plan = plan_layers(structure, config)
        scores = {layer.target.name: self._scores(model, layer) for layer in plan.layers}
        pruned: dict[str, list[int]] = {}
        for layer in plan.layers:
            channels = outliers(scores[layer.target.name], config.threshold)
            if len(channels):
                pruned[layer.target.name] = channels.tolist()
                self._silence(model, layer, channels)
        too_small = [
            layer.target.name
            for layer in plan.layers
            if not can_have_outliers(layer.target.units, config.threshold)
        ]
        if len(too_small) == len(plan.layers):
            _LOG.warning(
                "no layer has enough channels for a deviation above %g, so nothing can be "
                "pruned; use a lower threshold",
                config.threshold,
            )
        return DefenseResult(
            model=model,
            details={
                "threshold": config.threshold,
                "pruned": pruned,
                "pruned_channels": sum(map(len, pruned.values())),
                "scored_channels": sum(map(len, scores.values())),
                "too_small_to_prune": too_small,
                "proxies": [layer.target.name for layer in plan.layers if layer.is_proxy],
                "skipped": plan.skipped,
            },
            tensors={f"scores.{name}": values.float() for name, values in scores.items()},
        )

    def _scores(self, model: nn.Module, layer: ScoredLayer) -> Tensor:
        """s_k of every channel of one layer, float64, C."""
        norms = [
            channel_norms(
                [_weight(model, name) for name in source.conv_names],
                has_identity=source.has_identity,
                channels=source.channels,
            )
            for source in layer.sources
        ]
        return torch.cat(norms) * self._scale(model, layer)

    def _scale(self, model: nn.Module, layer: ScoredLayer) -> Tensor:
        """|γ| / √(var + ε) of the norm; |γ| without statistics; one where there is no norm."""
        if not layer.target.is_norm:
            return torch.ones(layer.target.units, dtype=torch.float64)
        norm = model.get_submodule(layer.target.name)
        scale = _weight(model, layer.target.name).detach().to("cpu", torch.float64).abs()
        variance = getattr(norm, "running_var", None)
        if variance is None:
            return scale
        epsilon = float(norm.eps) if self.config.epsilon == "norm" else 0.0  # type: ignore[arg-type]
        deviation: Tensor = (variance.detach().to("cpu", torch.float64) + epsilon).sqrt()
        return scale / deviation

    def _silence(self, model: nn.Module, layer: ScoredLayer, channels: Tensor) -> None:
        target = layer.target
        names = target.parameters if self.config.prune_bias else (target.weight,)
        with torch.no_grad():
            for name in names:
                parameter = model.get_parameter(name)
                parameter[channels.to(parameter.device)] = 0


def _weight(model: nn.Module, name: str) -> Tensor:
    weight: Tensor = model.get_submodule(name).weight  # type: ignore[assignment]
    return weight
