"""backdoorkit: a plugin framework for backdoor learning on PyTorch image classifiers.

This module is what a plugin's *light* module imports; it does not import torch. What a method's
implementation needs is in :mod:`backdoorkit.api`.
"""

from __future__ import annotations

from backdoorkit.hooks.hookspecs import HOOK_API, hookimpl
from backdoorkit.hooks.info import Kind, MethodInfo, Need, Stage
from backdoorkit.hooks.options import option
from backdoorkit.hooks.published import PublishedTable
from backdoorkit.hooks.shared_options import (
    IndexPolicy,
    LabelMapping,
    PoisonOptions,
    RateBasis,
    Selection,
    TrainOptions,
)
from backdoorkit.hooks.surrogate_options import SurrogateOptions

__all__ = [
    "HOOK_API",
    "IndexPolicy",
    "Kind",
    "LabelMapping",
    "MethodInfo",
    "Need",
    "PoisonOptions",
    "PublishedTable",
    "RateBasis",
    "Selection",
    "Stage",
    "SurrogateOptions",
    "TrainOptions",
    "__version__",
    "hookimpl",
    "option",
]

__version__ = "0.1.0"
