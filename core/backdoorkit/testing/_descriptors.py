"""What holds for methods of every kind: their record, their options, their light module."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Any, Final

import attrs
import tomli_w

from backdoorkit.errors import ConfigError
from backdoorkit.hooks.info import Kind
from backdoorkit.hooks.options import (
    RULES,
    OptionSpec,
    json_schema,
    option_specs,
    structure,
    unstructure,
)
from backdoorkit.hooks.registry import resolve_config
from backdoorkit.testing._subject import CheckSkippedError, Subject, require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["CHECKS"]

#: What a light module must not import: each costs a good part of a second or more.
HEAVY: Final = ("torch", "torchvision", "sklearn", "scipy", "matplotlib", "rich", "datasets")
#: Processor seconds a light module may take beyond the framework; loose, for busy machines.
IMPORT_SECONDS: Final = 0.5
#: Keys with a meaning of their own in a recipe, and what the run decides for every method.
RESERVED_OPTIONS: Final = frozenset({"name", "preset", "seed", "device"})

_METHODS_WITH_PAPERS: Final = (Kind.ATTACK, Kind.DEFENSE, Kind.DETECTOR, Kind.ANALYSIS)


def is_found_by_its_name(subject: Subject) -> None:
    """The registry finds it by its qualified name."""
    found = subject.registry.find(subject.method.qualified_name)
    require(found == subject.method, f"found {found!r} instead")


def light_module_imports_nothing_heavy(subject: Subject) -> None:
    """A fresh interpreter imports the plugin's entry module fast and without torch."""
    (record,) = [r for r in subject.registry.plugins if r.name == subject.method.plugin]
    if not record.module:
        raise CheckSkippedError("the plugin was registered in this process")
    found = _import_elsewhere(record.module)
    heavy = ", ".join(found["heavy"])
    require(not heavy, f"importing {record.module} imports {heavy}; import it where it is used")
    require(
        found["seconds"] <= IMPORT_SECONDS,
        f"importing {record.module} takes {found['seconds']:.2f} s of processor time, "
        f"more than {IMPORT_SECONDS} s",
    )


def is_described(subject: Subject) -> None:
    """Summary, reference, stage and needs are filled in."""
    info = subject.info
    summary = info.summary
    require(
        summary[:1].isupper() and summary.endswith(".") and "\n" not in summary,
        f"summary must be one line from a capital to a full stop, not {summary!r}",
    )
    if subject.kind in _METHODS_WITH_PAPERS:
        require(bool(info.reference), "reference is empty; name authors, title, venue and year")
        # An analysis is made after the fact; it acts nowhere in a model's life.
        is_placed = info.stage is not None or subject.kind is Kind.ANALYSIS
        require(is_placed, "stage is missing")
    if subject.kind in (Kind.DEFENSE, Kind.DETECTOR, Kind.ANALYSIS):
        require(bool(info.needs), "needs are empty; a method that is given nothing can do nothing")


def configuration_is_frozen(subject: Subject) -> None:
    """The configuration is hashable and cannot be changed."""
    config = subject.config
    for field in attrs.fields(type(config)):
        try:
            setattr(config, field.name, getattr(config, field.name))
        except attrs.exceptions.FrozenInstanceError:
            continue
        require(False, f"{field.name} can be assigned; use @attrs.frozen(kw_only=True)")
    try:
        hash(config)
    except TypeError as error:
        require(False, f"the configuration is not hashable ({error}); use tuples for lists")


def options_are_explained(subject: Subject) -> None:
    """Every option is made by ``option()``, has a help sentence and a name of its own."""
    for field in attrs.fields(subject.info.config):
        require(RULES in field.metadata, f"{field.name} must be made by backdoorkit.option()")
    for spec in option_specs(subject.info.config):
        require(spec.help.endswith("."), f"help of {spec.name} must be a sentence: {spec.help!r}")
        require(spec.name not in RESERVED_OPTIONS, f"{spec.name!r} is not free to be an option")


def configuration_survives_toml(subject: Subject) -> None:
    """Written as TOML and read again it is the same; so its defaults are valid, too."""
    text = tomli_w.dumps(unstructure(subject.config))
    again: Any = structure(subject.info.config, tomllib.loads(text))
    require(again == subject.config, f"became {again!r}")


def presets_are_valid(subject: Subject) -> None:
    """Every preset makes a configuration."""
    for preset in subject.info.presets:
        try:
            resolve_config(subject.method, _without_preset(subject) | {"preset": preset})
        except ConfigError as error:
            require(False, f"preset {preset!r}: {error}")


def unknown_options_are_refused(subject: Subject) -> None:
    """A misspelt option is an error."""
    _refuses(subject, {"no_such_option": 1}, "an unknown option")


def values_out_of_range_are_refused(subject: Subject) -> None:
    """A value beyond each bound, and one of the wrong type, is an error."""
    for spec in option_specs(subject.info.config):
        for value in _wrong_values(spec):
            _refuses(subject, {spec.name: value}, f"{spec.name} = {value!r}")


def schema_is_valid(subject: Subject) -> None:
    """The JSON Schema is one, and accepts the configuration."""
    if importlib.util.find_spec("jsonschema") is None:
        raise CheckSkippedError("jsonschema is not installed")
    jsonschema: Any = importlib.import_module("jsonschema")
    schema = json_schema(subject.info.config)
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(unstructure(subject.config), schema)
    except (jsonschema.SchemaError, jsonschema.ValidationError) as error:
        require(False, error.message)


def implementation_can_be_made(subject: Subject) -> None:
    """The implementation is imported, has the class for its kind, and takes the configuration."""
    subject.create()


CHECKS: Final[tuple[Callable[[Subject], None], ...]] = (
    is_found_by_its_name,
    light_module_imports_nothing_heavy,
    is_described,
    options_are_explained,
    configuration_is_frozen,
    configuration_survives_toml,
    presets_are_valid,
    unknown_options_are_refused,
    values_out_of_range_are_refused,
    schema_is_valid,
    implementation_can_be_made,
)

_PROBE: Final = """
import json, sys, time
import backdoorkit
started = time.process_time()
__import__(sys.argv[1])
seconds = time.process_time() - started
heavy = [name for name in sys.argv[2].split(",") if name in sys.modules]
print(json.dumps({"seconds": seconds, "heavy": heavy}))
"""


def _import_elsewhere(module: str) -> dict[str, Any]:
    path = "\n".join(sys.path)
    code = f"import sys; sys.path[:] = {path!r}.split('\\n')\n{_PROBE}"
    done = subprocess.run(
        [sys.executable, "-c", code, module, ",".join(HEAVY)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    last = done.stderr.strip().rpartition("\n")[2]
    require(done.returncode == 0, f"importing {module} alone failed: {last}")
    found: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return found


def _without_preset(subject: Subject) -> dict[str, Any]:
    required = {spec.name for spec in option_specs(subject.info.config) if spec.required}
    return {name: value for name, value in subject.values.items() if name in required}


def _refuses(subject: Subject, values: dict[str, Any], what: str) -> None:
    try:
        structure(subject.info.config, unstructure(subject.config) | values)
    except ConfigError:
        return
    require(False, f"{what} was accepted")


def _wrong_values(spec: OptionSpec) -> Iterator[Any]:
    beyond = [
        bound + step
        for bound, step in ((spec.ge, -1), (spec.gt, 0), (spec.le, 1), (spec.lt, 0))
        if bound is not None
    ]
    kind = spec.base_type if not spec.is_sequence else spec.base_type.__args__[0]
    values = [int(value) if kind is int else value for value in beyond]
    yield from ([value] for value in values) if spec.is_sequence else values
    yield object()  # of no type that a recipe could hold
