"""Presets: named sets of option values that a method ships, and how to tell that one was used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs

from backdoorkit.errors import ConfigError, Issue, UnknownNameError
from backdoorkit.hooks.options import structure, unstructure
from backdoorkit.hooks.shared_options import TrainOptions

if TYPE_CHECKING:
    from backdoorkit.hooks._loading import Method

__all__ = ["PAPER", "deviating_preset", "resolve_config"]

#: Presets with a paper's own settings deviate from nothing.
PAPER: Final = "paper"
_BUDGET: Final = frozenset(attrs.fields_dict(TrainOptions))


def resolve_config(method: Method, values: Mapping[str, Any], path: str = "") -> Any:
    """The configuration of ``method`` from plain values, strictly.

    The key ``preset`` names a set of values that the method ships; what else is given comes over
    it.

    Raises
    ------
    ConfigError
        with every fault, each with its path below ``path``.

    """
    if "preset" not in values:
        return structure(method.info.config, values, path)
    given = dict(values)
    preset = given.pop("preset")
    presets = method.info.presets
    if isinstance(preset, str) and preset in presets:
        return structure(method.info.config, _merge(presets[preset], given), path)
    fault = f"{method.name} has no presets"
    if presets:
        fault = str(UnknownNameError(f"preset of {method.name}", str(preset), presets))
    issues = [Issue(f"{path}.preset" if path else "preset", fault)]
    try:
        structure(method.info.config, given, path)
    except ConfigError as error:
        issues += error.issues
    raise ConfigError(issues)


def deviating_preset(method: Method, config: Any) -> str:
    """Name of the preset of released code that ``config`` follows; empty where it follows none.

    A preset is followed where every option on which it differs from both the defaults and the
    paper's preset has the preset's value, whatever the others are set to. Options that all
    trainings have, such as epochs, are often changed to fit the data, and count only where no
    others differ. Of several that fit, it is the one that says most: a preset often is another with
    more changes.
    """
    given = unstructure(config)
    settled = [_values(method, {})]
    if PAPER in method.info.presets:
        settled.append(_values(method, {"preset": PAPER}))
    following: dict[str, tuple[int, int]] = {}
    for name in method.info.presets:
        values = {} if name == PAPER else _values(method, {"preset": name})
        own = {
            key: value
            for key, value in values.items()
            if all(other.get(key, value) != value for other in settled if other)
        }
        special = {key: own[key] for key in own if key not in _BUDGET}
        telling = special or own
        if telling and all(given.get(key) == value for key, value in telling.items()):
            following[name] = (len(special), len(own))
    return max(following, key=lambda name: following[name], default="")


def _values(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values; nothing where what is required is missing."""
    try:
        return dict(unstructure(resolve_config(method, given)))
    except ConfigError:
        return {}


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
