"""Channel Lipschitzness Pruning: channels whose kernels amplify too much are cut, without data."""

from __future__ import annotations

from typing import Literal

import attrs

from backdoorkit import MethodInfo, Need, Stage, hookimpl, option

__all__ = ["CLPConfig", "backdoorkit_defenses"]


@attrs.frozen(kw_only=True)
class CLPConfig:
    """Which channels count as outliers, and how they are scored."""

    threshold: float = option(
        3.0,
        ge=0,
        symbol="u",
        help="Standard deviations above the layer's mean score beyond which a channel is pruned.",
    )
    pairing: Literal["dataflow", "order"] = option(
        "dataflow",
        help="Which convolution belongs to a batch norm: the one it reads, or the one registered "
        "last before it, as in the released code.",
    )
    epsilon: Literal["norm", "none"] = option(
        "norm",
        help="Added to the variance under the root: the batch norm's own constant, or nothing, as "
        "in the released code.",
    )
    prune_bias: bool = option(
        True, help="Zero a pruned channel's shift or bias too, so that it is silent."
    )
    unnormalized: bool = option(
        True,
        help="Score convolutions that no norm reads as well, and prune their filters (data-flow "
        "pairing only).",
    )
    proxy: bool = option(
        False,
        help="Where a norm keeps no running statistics (layer norm, group norm), use a proxy: "
        "the layer's own rows, which bound nothing (data-flow pairing only).",
    )


_RELEASED = {
    "threshold": 3.0,
    "pairing": "order",
    "epsilon": "none",
    "prune_bias": True,
    "unnormalized": False,
}

_METHOD = MethodInfo(
    name="clp",
    summary="Prunes channels with an outlying Lipschitz bound; needs no data.",
    reference="Zheng, Tang, Li and Liu, Data-free Backdoor Removal Based on Channel "
    "Lipschitzness, ECCV 2022",
    implementation="backdoorkit_clp._defense:CLP",
    config=CLPConfig,
    stage=Stage.POST_TRAINING,
    needs=frozenset({Need.WEIGHTS}),
    presets={
        "paper": {"threshold": 3.0},
        "official": _RELEASED,
        "backdoorbench": _RELEASED,
        # 200 classes of 64 x 64 pixels
        "backdoorbench-tiny": {**_RELEASED, "threshold": 5.0},
    },
)


@hookimpl
def backdoorkit_defenses() -> list[MethodInfo]:
    return [_METHOD]
