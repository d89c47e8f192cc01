"""From plain values to a recipe: gathers every fault before any is reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs

from backdoorkit.data.options import DataOptions
from backdoorkit.errors import ConfigError, InputError, Issue
from backdoorkit.hooks.info import Kind
from backdoorkit.hooks.options import option_specs, structure
from backdoorkit.hooks.registry import resolve_config
from backdoorkit.hooks.shared_options import TrainOptions
from backdoorkit.pipeline._figures import published_figures
from backdoorkit.pipeline._tables import (
    advised,
    by_path,
    faults_of_run,
    is_array_of_tables,
    plain_text,
    unknown_keys,
)
from backdoorkit.pipeline.catalog import IN_PROCESS, PROCESSES
from backdoorkit.pipeline.controls import fine_tuning_like
from backdoorkit.pipeline.portable import open_victim
from backdoorkit.pipeline.recipe import (
    COMPOSED,
    DEFAULT_DATA,
    DEFAULT_MODEL,
    DETECTION_METRIC,
    NO_ATTACK,
    STANDARD_METRICS,
    ComposedChoice,
    DataChoice,
    HereText,
    MethodChoice,
    ModelChoice,
    NoOptions,
    Recipe,
    RunOptions,
    Statistics,
)
from backdoorkit.pipeline.sweeps import SWEEP, Variant, sweep_faults, variants

if TYPE_CHECKING:
    from backdoorkit.hooks.registry import Method, Registry
    from backdoorkit.pipeline.portable import VictimFolder

__all__ = ["Parser"]

_STEPS: Final = ("attacks", "defenses", "detectors", "analyses")
_TABLES: Final = ("data", "model", "train", *_STEPS, "metrics", "observers")
#: What a victim brings with it.
_FROM_VICTIM: Final = ("seeds", "model", "train", "attacks")
_NORMALIZATIONS: Final = ("data", "none", "imagenet")
T = TypeVar("T")
C = TypeVar("C", bound=MethodChoice)


class Parser:
    """Makes one recipe; what is wrong with it collects in ``issues``."""

    def __init__(self, registry: Registry, base_path: Path) -> None:
        self.issues: list[Issue] = []
        self._registry = registry
        self._base_path = base_path

    def recipe(self, mapping: Mapping[str, Any]) -> Recipe | None:
        """The recipe; None, or not to be used, where there are ``issues``."""
        keys = tuple(attrs.fields_dict(RunOptions))
        self.issues += unknown_keys(mapping, (*keys, *_TABLES, "victim"))
        victim = None
        if "victim" in mapping:
            victim = self._victim(mapping)
            if victim is None:
                return None
            mapping = {**mapping, **self._of_victim(victim, mapping)}
        options = self._run_options({key: mapping[key] for key in keys if key in mapping})
        executor = self._executor(mapping, options)
        data = self._tables(mapping, "data", self._data, {"name": DEFAULT_DATA})
        models = self._tables(mapping, "model", self._model, {"name": DEFAULT_MODEL})
        train = self._tables(mapping, "train", self._train, {})
        attacks = self._methods(mapping, "attacks", Kind.ATTACK)
        defenses = self._methods(mapping, "defenses", Kind.DEFENSE)
        if options and options.controls:
            defenses += self._control(defenses)
        detectors = self._methods(mapping, "detectors", Kind.DETECTOR)
        analyses = self._methods(mapping, "analyses", Kind.ANALYSIS)
        metrics = self._metrics(mapping)
        observers = self._methods(mapping, "observers", Kind.OBSERVER)
        named = options.published if options else ()
        published = published_figures(named, self._registry, self._fault)
        if not any(mapping.get(key) for key in _STEPS):
            self._fault(
                "", "nothing to do: name at least one attack, defense, detector or analysis"
            )
        if self.issues or options is None or executor is None:
            return None
        return Recipe(
            name=options.name,
            seeds=options.seeds,
            data=data,
            models=models,
            train=train,
            attacks=attacks or (MethodChoice(name=NO_ATTACK, config=NoOptions()),),
            defenses=defenses,
            detectors=detectors,
            analyses=analyses,
            metrics=metrics,
            victim=victim,
            device=options.device,
            threads=options.threads,
            jobs=options.jobs,
            executor=executor,
            oracle=options.oracle,
            controls=options.controls,
            observers=observers,
            published=published,
        )

    # -- a victim from elsewhere -------------------------------------------------------------------

    def _victim(self, mapping: Mapping[str, Any]) -> VictimFolder | None:
        value = mapping["victim"]
        if not (isinstance(value, str) and value):
            self._fault("victim", f"must be the path of a victim's folder, not {value!r}")
            return None
        for key in _FROM_VICTIM:
            if key in mapping:
                self._fault(key, "comes from the victim; leave it out")
        data = mapping.get("data", {})
        if isinstance(data, list | tuple) or (isinstance(data, Mapping) and SWEEP in data):
            self._fault("data", "must be one table: a victim was trained on one data set")
        try:
            victim = open_victim(Path(self._absolute(value)))
        except InputError as error:
            self._fault("victim", str(error))
            return None
        return None if self.issues else victim

    def _of_victim(self, victim: VictimFolder, mapping: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return victim.recipe_values(mapping.get("data"))
        except InputError as error:
            self._fault("victim", str(error))
            return {}

    # -- tables ------------------------------------------------------------------------------------

    def _tables(
        self,
        mapping: Mapping[str, Any],
        key: str,
        parse: Callable[[dict[str, Any], str], T | None],
        default: Mapping[str, Any],
    ) -> tuple[T, ...]:
        """One table, or an array of several."""
        value = mapping.get(key, default)
        if isinstance(value, Mapping):
            return self._each({key: value}, parse)
        if not is_array_of_tables(value) or not value:
            self._fault(key, f"must be a table ([{key}]) or several ([[{key}]]), not {value!r}")
            return ()
        return self._each(by_path(value, key), parse)

    def _methods(
        self, mapping: Mapping[str, Any], key: str, kind: Kind
    ) -> tuple[MethodChoice, ...]:
        value = mapping.get(key, [])
        if not is_array_of_tables(value):
            self._fault(key, f"must be an array of tables ([[{key}]]), not {value!r}")
            return ()

        def parse(table: dict[str, Any], path: str) -> MethodChoice | None:
            if kind is Kind.ATTACK and table.get("name") == COMPOSED:
                return self._composed(table, path)
            return self._choice(table, path, kind, MethodChoice)

        return self._each(by_path(value, key), parse)

    def _each(
        self,
        tables: Mapping[str, Mapping[str, Any]],
        parse: Callable[[dict[str, Any], str], T | None],
    ) -> tuple[T, ...]:
        """Each table by its path, and of one with a sweep each variant."""
        made: dict[str, T] = {}
        for path, table in tables.items():
            faults = list(sweep_faults(table, path))
            self.issues += faults
            for variant in () if faults else variants(table, path):
                parsed = self._variant(variant, parse)
                first = next((other for other, item in made.items() if item == parsed), None)
                if first is not None:
                    self._fault(variant.title, f"is the same as {first}; leave one of them out")
                elif parsed is not None:
                    made[variant.title] = parsed
        return tuple(made.values())

    def _variant(
        self, variant: Variant, parse: Callable[[dict[str, Any], str], T | None]
    ) -> T | None:
        """Faults that several variants share are told once."""
        before, self.issues = self.issues, []
        parsed = parse(dict(variant.table), variant.path)
        found = map(variant.located, self.issues)
        self.issues = before
        self.issues += (issue for issue in found if not variant.positions or issue not in before)
        return parsed

    # -- one table of each sort --------------------------------------------------------------------

    def _run_options(self, values: dict[str, Any]) -> RunOptions | None:
        # Its table is read by itself.
        options = self._structured(
            RunOptions, {key: value for key, value in values.items() if key != "executor"}, ""
        )
        if options is None:
            return None
        self.issues += faults_of_run(options)
        return options

    def _executor(
        self, mapping: Mapping[str, Any], options: RunOptions | None
    ) -> MethodChoice | None:
        """Where steps run: a name, or a table with options; what suits ``jobs`` by default."""
        jobs = 1 if options is None or options.jobs is None else options.jobs
        default = IN_PROCESS if jobs == 1 else PROCESSES
        value = mapping.get("executor", default)
        table = {"name": default, **value} if isinstance(value, Mapping) else {"name": value}
        choice = self._choice(table, "executor", Kind.EXECUTOR, MethodChoice)
        if choice is not None and choice.name == IN_PROCESS and jobs > 1:
            self._fault(
                "executor",
                f"{IN_PROCESS!r} carries out one step at a time, and jobs is {jobs}; leave "
                "executor out, or jobs",
            )
        return choice

    def _control(self, defenses: Sequence[MethodChoice]) -> tuple[MethodChoice, ...]:
        """Plain fine-tuning beside the defenses, where its plugin is installed."""
        table = fine_tuning_like(defenses, self._registry.methods(Kind.DEFENSE))
        tables = [] if table is None else [table]
        return self._methods({"controls": tables}, "controls", Kind.DEFENSE)

    def _train(self, table: dict[str, Any], path: str) -> TrainOptions | None:
        return self._structured(TrainOptions, table, path)

    def _data(self, table: dict[str, Any], path: str) -> DataChoice | None:
        names = {spec.name for spec in option_specs(DataOptions)}
        split = {key: table.pop(key) for key in list(table) if key in names}
        options = self._structured(DataOptions, split, path)
        choice = self._choice(table, path, Kind.DATASET, DataChoice, extra=DataOptions)
        return None if choice is None or options is None else attrs.evolve(choice, options=options)

    def _model(self, table: dict[str, Any], path: str) -> ModelChoice | None:
        weights = self._weights(table.pop("weights", None), f"{path}.weights")
        normalization = self._normalization(
            table.pop("normalization", "data"), f"{path}.normalization"
        )
        choice = self._choice(table, path, Kind.MODEL, ModelChoice, extra=ModelChoice)
        if choice is None:
            return None
        return attrs.evolve(choice, weights=weights, normalization=normalization)

    def _weights(self, value: Any, path: str) -> Path | None:
        if value is not None and not (isinstance(value, str) and value):
            self._fault(path, f"must be the path of a file, not {value!r}")
            return None
        return None if value is None else Path(self._absolute(value))

    def _normalization(self, value: Any, path: str) -> Any:
        if isinstance(value, Mapping):
            return self._structured(Statistics, value, path)
        if value not in _NORMALIZATIONS:
            allowed = ", ".join(map(repr, _NORMALIZATIONS))
            self._fault(path, f"must be {allowed} or a table of mean and std, not {value!r}")
            return None
        return str(value)

    def _metrics(self, mapping: Mapping[str, Any]) -> tuple[MethodChoice, ...]:
        if "metrics" in mapping:
            return self._methods(mapping, "metrics", Kind.METRIC)
        known = {method.name for method in self._registry.methods(Kind.METRIC)}
        missing = [name for name in STANDARD_METRICS if name not in known]
        if missing:
            self._fault(
                "metrics",
                f"the standard metrics {', '.join(missing)} are not installed; install a plugin "
                "that offers them, or name others under [[metrics]]",
            )
            return ()
        rating = (
            [DETECTION_METRIC] if mapping.get("detectors") and DETECTION_METRIC in known else []
        )
        choices = (
            self._choice({"name": name}, "metrics", Kind.METRIC, MethodChoice)
            for name in (*STANDARD_METRICS, *rating)
        )
        return tuple(choice for choice in choices if choice is not None)

    def _composed(self, table: dict[str, Any], path: str) -> ComposedChoice | None:
        """Several attacks as one: each poisons samples that the others leave alone."""
        self.issues += unknown_keys(table, ("name", "parts"), f"{path}.")
        value: Any = table.get("parts")
        if not is_array_of_tables(value) or len(value) < 2 or any(SWEEP in part for part in value):
            what = "must be an array of at least two tables, one per attack, without sweeps"
            self._fault(f"{path}.parts", what)
            return None

        def parse(part: dict[str, Any], where: str) -> MethodChoice | None:
            if part.get("name") in (NO_ATTACK, COMPOSED):
                self._fault(
                    f"{where}.name", f"{part['name']!r} cannot be part of a composed attack"
                )
                return None
            choice = self._choice(part, where, Kind.ATTACK, MethodChoice)
            if choice is not None and choice.controls_training:
                self._fault(
                    where,
                    f"{choice.name} controls the training here, and only attacks by data can be "
                    "composed; give it index_policy = 'fixed'",
                )
            return choice

        parts = self._each(by_path(value, f"{path}.parts"), parse)
        return ComposedChoice(name=COMPOSED, config=NoOptions(), parts=parts)

    # -- methods -----------------------------------------------------------------------------------

    def _choice(
        self,
        table: dict[str, Any],
        path: str,
        kind: Kind,
        cls: type[C],
        extra: type | None = None,
    ) -> C | None:
        """A method by name with its options; ``extra`` names options that others have taken out."""
        name = table.pop("name", None)
        if not isinstance(name, str):
            problem = f"must be text, not {name!r}" if name is not None else f"must name the {kind}"
            self._fault(f"{path}.name", problem)
            return None
        if name == NO_ATTACK:
            return self._nothing(table, path, kind, cls)
        try:
            method = self._registry.find(name, kind)
        except InputError as error:
            self._fault(f"{path}.name", str(error))
            return None
        self._resolve_paths(table, method)
        try:
            config = resolve_config(method, plain_text(table), path)
        except ConfigError as error:
            self.issues += (advised(issue, method, extra, path) for issue in error.issues)
            return None
        return cls(name=method.name, config=config, method=method)

    def _nothing(self, table: Mapping[str, Any], path: str, kind: Kind, cls: type[C]) -> C | None:
        if kind is Kind.DEFENSE:
            self._fault(f"{path}.name", "'none' has a row in every table; leave it out")
        elif kind is not Kind.ATTACK:
            self._fault(f"{path}.name", f"must name a {kind}; 'none' is for attacks")
        elif table:
            self._fault(f"{path}.{next(iter(table))}", "'none' has no options")
        else:
            return cls(name=NO_ATTACK, config=NoOptions())
        return None

    def _resolve_paths(self, table: dict[str, Any], method: Method) -> None:
        for spec in option_specs(method.info.config):
            value = table.get(spec.name)
            if spec.base_type is Path and isinstance(value, str):
                table[spec.name] = self._absolute(value)

    def _absolute(self, text: str) -> str:
        base = Path.cwd() if isinstance(text, HereText) else self._base_path
        return str(base / Path(text).expanduser())

    # -- faults ------------------------------------------------------------------------------------

    def _structured(self, cls: type[T], values: Mapping[str, Any], path: str) -> T | None:
        try:
            return structure(cls, plain_text(values), path)
        except ConfigError as error:
            self.issues += error.issues
            return None

    def _fault(self, path: str, message: str) -> None:
        self.issues.append(Issue(path, message))
