"""Options that make one run of any installed defense or detector a matter of moments."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from backdoorkit.context import Context
from backdoorkit.hooks.info import Kind
from backdoorkit.hooks.options import option_specs
from backdoorkit.hooks.registry import Method
from backdoorkit.pipeline.envelope import Resources, run_defense, run_detector

#: What a method spends its time on; of these, the options that it has.
_LESS: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 24,
    "precision": "float32",
    "ascent_steps": 1,
    "endpoint_epochs": 1,
    "inversion_batch_size": 4,
    "inversion_batches": 1,
    "inversion_steps": 1,
    "isolation_rate": 0.25,
    "iterations": 1,
    "max_epochs": 1,
    "overlays": 4,
    "recovery_epochs": 1,
    "refinement": 1,
    "rounds": 1,
    "teacher_epochs": 1,
    "turning_epoch": 1,
    "unlearning_epochs": 1,
}
#: Levels at which something happens, rates that an untrained network bears.
_OF_METHOD: dict[str, dict[str, Any]] = {
    "abl": {"isolation_learning_rate": 0.001, "learning_rate": 0.001},
    "anp": {"grid": (0.0, 0.5)},
    "clp": {"threshold": 1.0},
    "mcr": {"grid": (0.5,)},
    "nc": {"success_threshold": 0.01, "threshold": 0.0},
    "rnp": {"grid": (0.0, 0.5), "stop_accuracy": 1.0},
    "tsbd": {"unlearning_rate": 0.1},
}


@pytest.fixture(scope="session")
def quick() -> Callable[..., dict[str, Any]]:
    """``quick(method, values)``: ``values`` and what makes the method quick."""

    def options(method: Method, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
        names = {spec.name for spec in option_specs(method.info.config)}
        less = {name: value for name, value in _LESS.items() if name in names}
        return {**less, **_OF_METHOD.get(method.name, {}), **(values or {})}

    return options


@pytest.fixture(scope="session")
def run_method() -> Callable[[Any, Method, Resources], None]:
    """Run a defender in the framework's envelope, which refuses other keys, shapes, NaN and ∞."""

    def run(instance: Any, method: Method, resources: Resources) -> None:
        context = Context(
            method=method.name,
            seed=0,
            device=torch.device("cpu"),
            image_shape=resources.image_shape,
            num_classes=resources.num_classes,
            precision="float32",
        )
        if method.kind is Kind.DETECTOR:
            run_detector(instance, method.info, resources, context)
            return
        result = run_defense(instance, method.info, resources, context)
        fresh = copy.deepcopy(resources.model)
        fresh.load_state_dict(result.model.state_dict())
        images = resources.clean.images[:4].float() / 255
        with torch.no_grad():
            logits = fresh.eval()(images)
            assert logits.isfinite().all()
            assert torch.equal(logits, result.model.eval()(images))

    return run
