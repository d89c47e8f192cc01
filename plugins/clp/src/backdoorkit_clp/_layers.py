"""Which channels are scored together, from which kernels, and where they are pruned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from backdoorkit.api import ConvNormPair, PrunableLayer, Structure

if TYPE_CHECKING:
    from backdoorkit_clp import CLPConfig

__all__ = ["Plan", "ScoredLayer", "plan_layers"]


@attrs.frozen(kw_only=True, eq=False)
class ScoredLayer:
    """Channels whose scores are compared with each other."""

    #: where a channel is silenced: the norm, or the convolution itself where no norm counts
    target: PrunableLayer
    #: who makes the channels: one entry, or several for the ranges of a concatenation
    sources: tuple[ConvNormPair, ...]
    #: the score stands for a bound that does not exist
    is_proxy: bool = False


@attrs.frozen(kw_only=True, eq=False)
class Plan:
    """All layers to score, and what is left alone for which reason."""

    layers: tuple[ScoredLayer, ...]
    skipped: dict[str, str]


def plan_layers(structure: Structure, config: CLPConfig) -> Plan:
    """Decide from the structure alone, so that a model can be refused before anything runs."""
    return _by_order(structure) if config.pairing == "order" else _by_dataflow(structure, config)


def _by_dataflow(structure: Structure, config: CLPConfig) -> Plan:
    prunable = {layer.name: layer for layer in structure.prunable}
    skipped = dict(structure.unpaired_norms)
    by_norm: dict[str, list[ConvNormPair]] = {}
    alone: list[str] = []
    for pair in structure.conv_norm_pairs:
        if pair.norm_name is not None:
            by_norm.setdefault(pair.norm_name, []).append(pair)
        elif pair.conv_names[0] in structure.gates:
            skipped[pair.conv_names[0]] = "it makes factors for other channels"
        elif config.unnormalized:
            alone += pair.conv_names
        else:
            skipped[pair.conv_names[0]] = "no norm reads it"
    layers: list[ScoredLayer] = []
    proxies: list[str] = []
    for name, pairs in by_norm.items():
        target = prunable.get(name)
        if not pairs[0].is_foldable and not config.proxy:
            skipped[name] = f"a {pairs[0].norm_kind} without running statistics bounds nothing"
        elif target is None or target.kind in ("layer-norm", "rms-norm"):
            proxies += [conv for pair in pairs for conv in pair.conv_names]
        elif sum(pair.channels for pair in pairs) != target.units:
            skipped[name] = "it normalises in several places"
        else:
            is_proxy = not pairs[0].is_foldable
            layers.append(ScoredLayer(target=target, sources=tuple(pairs), is_proxy=is_proxy))
    for name in dict.fromkeys((*alone, *proxies)):
        if name in prunable:
            layers.append(_own_rows(prunable[name], is_proxy=name in proxies))
        else:
            skipped[name] = "its weights are shared or computed"
    return Plan(layers=tuple(layers), skipped=skipped)


def _own_rows(layer: PrunableLayer, *, is_proxy: bool) -> ScoredLayer:
    source = ConvNormPair(conv_names=(layer.name,), norm_name=None, channels=layer.units)
    return ScoredLayer(target=layer, sources=(source,), is_proxy=is_proxy)


def _by_order(structure: Structure) -> Plan:
    """The released code's rule: a batch norm belongs to the convolution registered before it."""
    layers: list[ScoredLayer] = []
    skipped: dict[str, str] = {}
    last: PrunableLayer | None = None
    for layer in structure.prunable:
        if layer.kind == "conv":
            last = layer
        elif layer.kind != "batch-norm":
            if layer.is_norm:
                skipped[layer.name] = f"it is a {layer.kind}"
        elif last is None:
            skipped[layer.name] = "no convolution is registered before it"
        elif not layer.has_statistics:
            skipped[layer.name] = "it keeps no running statistics"
        elif last.units != layer.units:
            skipped[layer.name] = f"{last.name} has {last.units} channels, not {layer.units}"
        else:
            pair = ConvNormPair(conv_names=(last.name,), norm_name=layer.name, channels=layer.units)
            layers.append(ScoredLayer(target=layer, sources=(pair,)))
    return Plan(layers=tuple(layers), skipped=skipped)
