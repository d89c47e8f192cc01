"""Makes a method object from its record: the moment at which an implementation is imported."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from backdoorkit.errors import BackdoorkitError, BrokenPluginError, ContractError
from backdoorkit.hooks._loading import one_line
from backdoorkit.hooks.info import Kind, Need

if TYPE_CHECKING:
    from types import ModuleType

    from backdoorkit.hooks._loading import Method

__all__ = ["create_method"]


def create_method(method: Method, config: Any) -> Any:
    """As :meth:`backdoorkit.hooks.registry.Registry.create`."""
    implementation = _implementation(method)
    if not isinstance(config, method.info.config):
        raise ContractError(
            f"{method.qualified_name} takes a {method.info.config.__name__}, not {config!r}"
        )
    try:
        return implementation(config)
    except BackdoorkitError:
        raise
    except Exception as error:
        raise ContractError(
            f"{method.info.implementation} cannot be made from its configuration: "
            f"{one_line(error)}; its constructor must take the configuration alone"
        ) from error


def _implementation(method: Method) -> type:
    from backdoorkit import contracts
    from backdoorkit.placing import Executor
    from backdoorkit.watching import Observer

    bases: dict[Kind, type[Any]] = {
        Kind.ATTACK: contracts.Attack,
        Kind.DEFENSE: contracts.Defense,
        Kind.DETECTOR: contracts.Detector,
        Kind.ANALYSIS: contracts.Analysis,
        Kind.METRIC: contracts.Metric,
        Kind.DATASET: contracts.Dataset,
        Kind.MODEL: contracts.Architecture,
        Kind.EXECUTOR: Executor,
        Kind.OBSERVER: Observer,
    }
    target = method.info.implementation
    module_name, _, attribute = target.partition(":")
    found = getattr(_import(method, module_name), attribute, None)
    if found is None:
        raise ContractError(f"{method.qualified_name} names {target}, which does not exist")
    base = bases[method.kind]
    if Need.VERDICTS in method.info.needs:
        base = contracts.DetectionMetric
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ContractError(
            f"{method.qualified_name} names {target}, which must be a class derived from "
            f"backdoorkit.api.{base.__name__}"
        )
    return found


def _import(method: Method, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        origin = f"{method.distribution} {method.version}".strip() or "this process"
        raise BrokenPluginError(
            f"plugin {method.plugin!r} ({origin}) is broken: importing {module} for "
            f"{method.qualified_name} failed: {one_line(error)}"
        ) from error
