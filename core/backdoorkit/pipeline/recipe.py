"""The recipe of a run: what is attacked, defended and measured, with every option resolved.

A recipe is made from plain values (a TOML file, or the command line) strictly: every fault is
reported at once with its path, and nothing in it is evaluated as code.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from backdoorkit.data.options import DataOptions
from backdoorkit.errors import ConfigError, ContractError, InputError
from backdoorkit.hooks.options import option, option_specs, unstructure
from backdoorkit.pipeline.catalog import IN_PROCESS
from backdoorkit.pipeline.scales import at_scale

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backdoorkit.hooks.published import PublishedFigures
    from backdoorkit.hooks.registry import Method, Registry
    from backdoorkit.hooks.shared_options import TrainOptions
    from backdoorkit.pipeline.portable import VictimFolder

__all__ = [
    "COMPOSED",
    "DEFAULT_DATA",
    "DEFAULT_MODEL",
    "DETECTION_METRIC",
    "NO_ATTACK",
    "STANDARD_METRICS",
    "ComposedChoice",
    "DataChoice",
    "HereText",
    "MethodChoice",
    "ModelChoice",
    "NoOptions",
    "Normalization",
    "Recipe",
    "RunOptions",
    "Statistics",
    "read_recipe_file",
]

#: Name that stands for "no attack": the same model trained on clean data.
NO_ATTACK: Final = "none"
#: Name that stands for several attacks on one victim.
COMPOSED: Final = "composed"
DEFAULT_DATA: Final = "digits"
DEFAULT_MODEL: Final = "small-cnn"
#: Measured where a recipe names no metrics.
STANDARD_METRICS: Final = (
    "accuracy",
    "attack-success-rate",
    "robust-accuracy",
    "defense-effectiveness-rating",
)
#: Measured beside these where there are detectors, if it is installed.
DETECTION_METRIC: Final = "detection"
#: No recipe of a person is larger; what is larger is not a recipe.
_LARGEST_FILE: Final = 1 << 20
_IMAGENET: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class HereText(str):
    """Text given on the command line: a relative path in it starts from the working directory,
    not from the recipe file.
    """

    __slots__ = ()


@attrs.frozen(kw_only=True)
class Statistics:
    """Mean and standard deviation by channel, of images in [0, 1]."""

    mean: tuple[float, ...] = option(help="Mean of each channel.")
    std: tuple[float, ...] = option(gt=0, help="Standard deviation of each channel.")

    def __attrs_post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(
                "mean and std must have one number per channel each, not "
                f"{len(self.mean)} and {len(self.std)}"
            )


Normalization = Literal["data", "none", "imagenet"] | Statistics


@attrs.frozen(kw_only=True)
class NoOptions:
    """Options of the clean twin: it has none."""


@attrs.frozen(kw_only=True)
class MethodChoice:
    """A method with its resolved configuration."""

    name: str
    #: instance of the method's configuration class
    config: Any
    _method: Method | None = None

    @property
    def method(self) -> Method:
        """The registry's record; the clean twin (``none``) has none, and asking for it is a bug."""
        if self._method is None:
            raise ContractError(f"{self.name!r} stands for no method at all")
        return self._method

    @property
    def title(self) -> str:
        """What the table calls it, as long as that tells it from the others."""
        return self.name

    @property
    def controls_training(self) -> bool:
        """Whether it is an attack that trains the victim itself."""
        return bool(getattr(self.config, "controls_training", False))

    def to_mapping(self) -> dict[str, Any]:
        """Its table in the recipe."""
        return {"name": self.name, **unstructure(self.config)}


@attrs.frozen(kw_only=True)
class ComposedChoice(MethodChoice):
    """Several attacks on one victim, which poison one after the other."""

    parts: tuple[MethodChoice, ...]

    @property
    def title(self) -> str:
        return " + ".join(part.title for part in self.parts)

    def to_mapping(self) -> dict[str, Any]:
        return {"name": self.name, "parts": [part.to_mapping() for part in self.parts]}


@attrs.frozen(kw_only=True)
class DataChoice(MethodChoice):
    """A data set, and how it is split."""

    options: DataOptions = attrs.field(factory=DataOptions)

    def to_mapping(self) -> dict[str, Any]:
        return {**super().to_mapping(), **unstructure(self.options)}


@attrs.frozen(kw_only=True)
class ModelChoice(MethodChoice):
    """An architecture, how its images are normalised, and weights to import instead of training."""

    weights: Path | None = None
    normalization: Normalization = "data"

    def statistics(
        self, mean: Sequence[float], std: Sequence[float]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """What to normalise by, given the data's own mean and standard deviation by channel.

        Raises :class:`InputError` where the recipe's numbers are for another number of channels.
        """
        channels = len(mean)
        if self.normalization == "data":
            return tuple(mean), tuple(std)
        if self.normalization == "none":
            return (0.0,) * channels, (1.0,) * channels
        if isinstance(self.normalization, Statistics):
            wanted = (self.normalization.mean, self.normalization.std)
        else:
            wanted = _IMAGENET
        if len(wanted[0]) != channels:
            raise InputError(
                f"the normalization of {self.name} is for {len(wanted[0])} channels, and the "
                f"images have {channels}; use normalization = 'data', or give mean and std of "
                f"{channels}"
            )
        return wanted

    def to_mapping(self) -> dict[str, Any]:
        values = super().to_mapping()
        if self.weights is not None:
            values["weights"] = str(self.weights)
        chosen = self.normalization
        values["normalization"] = unstructure(chosen) if isinstance(chosen, Statistics) else chosen
        return values


@attrs.frozen(kw_only=True)
class RunOptions:
    """What is said once for a whole run."""

    name: str = option("run", help="Names the folder of the run's record and report.")
    seeds: tuple[int, ...] = option(
        (0,), ge=0, help="One run of everything per seed; tables show mean and spread."
    )
    device: str = option(
        "auto", help="auto, cpu, cuda or cuda:N; auto takes a GPU if there is one."
    )
    threads: int | None = option(
        None,
        ge=1,
        help="Processor threads of tensor operations. Default: one per core. One is the better "
        "choice for small networks, and where other programs use the cores.",
    )
    jobs: int | None = option(
        None,
        ge=1,
        help="Steps that run at once, each in a worker process with one processor thread unless "
        "threads says otherwise. Default: as suits the executor, one in this process.",
    )
    executor: str = option(
        IN_PROCESS,
        help="Where steps run: the name of an executor, or a table of its name and options. "
        "Default: in-process, or processes where jobs is above 1.",
    )
    oracle: bool = option(
        False,
        help="Permit methods to choose levels on test attack success; tables then say so.",
    )
    controls: bool = option(
        False,
        help="Add what results are to be compared with: the clean twin as it is and as detectors "
        "see it, and plain fine-tuning with as many epochs as the longest of the defenses.",
    )
    published: tuple[str, ...] = option(
        (), help="Tables of published figures that the report puts beside this run's."
    )


@attrs.frozen(kw_only=True)
class Recipe:
    """A whole run, resolved; several data sets, models or trainings make a grid."""

    name: str
    seeds: tuple[int, ...]
    data: tuple[DataChoice, ...]
    models: tuple[ModelChoice, ...]
    train: tuple[TrainOptions, ...]
    attacks: tuple[MethodChoice, ...]
    defenses: tuple[MethodChoice, ...] = ()
    detectors: tuple[MethodChoice, ...] = ()
    analyses: tuple[MethodChoice, ...] = ()
    metrics: tuple[MethodChoice, ...] = ()
    executor: MethodChoice
    #: take this victim instead of making one; the tables above then follow from it
    victim: VictimFolder | None = None
    device: str = "auto"
    threads: int | None = None
    jobs: int | None = None
    oracle: bool = False
    #: the clean twin is in the table, whatever the attacks are
    controls: bool = False
    #: told what happens; of no account for what is made
    observers: tuple[MethodChoice, ...] = ()
    #: shown beside the results; of no account either
    published: tuple[PublishedFigures, ...] = ()

    @classmethod
    def from_mapping(
        cls,
        mapping: Mapping[str, Any],
        registry: Registry,
        base_path: Path | None = None,
    ) -> Recipe:
        """The recipe that ``mapping`` (as read from TOML) describes.

        Parameters
        ----------
        mapping:
            Plain values; not changed.
        registry:
            Where methods are looked up.
        base_path:
            Where relative paths start; the working directory by default.

        Raises
        ------
        ConfigError
            with every fault and its path, such as ``attacks[0].poison_rate: must be at most 1``.
        BrokenPluginError
            where a method is named whose plugin cannot be used.

        """
        from backdoorkit.pipeline._parsing import Parser

        parser = Parser(registry, Path.cwd() if base_path is None else base_path.absolute())
        recipe = parser.recipe(mapping)
        if recipe is None or parser.issues:
            raise ConfigError(parser.issues)
        return recipe

    @classmethod
    def from_file(cls, path: Path, registry: Registry, scale: str | None = None) -> Recipe:
        """The recipe in a TOML file; relative paths in it start from its folder."""
        return cls.from_mapping(read_recipe_file(path, scale), registry, path.parent)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values with every default written out; TOML and JSON ready."""
        values: dict[str, Any] = {
            "name": self.name,
            "seeds": list(self.seeds),
            "device": self.device,
            "executor": _name_or_table(self.executor),
            "oracle": self.oracle,
            "data": _one_or_many([choice.to_mapping() for choice in self.data]),
            "model": _one_or_many([choice.to_mapping() for choice in self.models]),
            "train": _one_or_many([unstructure(options) for options in self.train]),
        }
        if self.threads is not None:
            values["threads"] = self.threads
        if self.jobs is not None:
            values["jobs"] = self.jobs
        if self.controls:
            values["controls"] = True
        if self.published:
            values["published"] = [figures.name for figures in self.published]
        if self.victim is not None:
            values["victim"] = str(self.victim.path)
            for key in ("seeds", "model", "train"):
                del values[key]
            split = {spec.name for spec in option_specs(DataOptions)}
            values["data"] = {k: v for k, v in values["data"].items() if k not in split}
        for key in ("attacks", "defenses", "detectors", "analyses", "metrics", "observers"):
            if self.victim is not None and key == "attacks":
                continue
            if choices := getattr(self, key):
                values[key] = [choice.to_mapping() for choice in choices]
        return values

    def to_toml(self) -> str:
        """The recipe as TOML; reading it again gives an equal recipe."""
        from backdoorkit.pipeline._toml import to_toml

        return to_toml(self.to_mapping())


def read_recipe_file(path: Path, scale: str | None = None) -> dict[str, Any]:
    """Plain values of a TOML file at a scale; ``name`` is the file's own where it gives none.

    Raises :class:`InputError` in one line, with the line number where the file is not TOML; every
    fault of the scale's tables at once.
    """
    import tomllib

    try:
        size = path.stat().st_size
        if size > _LARGEST_FILE:
            raise InputError(f"{path} has {size} bytes, which is too large for a recipe")
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"recipe {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"recipe {path} is not UTF-8 text; is it a TOML file?") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"recipe {path} is not valid TOML: {error}") from None
    except RecursionError:
        raise InputError(f"recipe {path} is nested too deeply") from None
    values.setdefault(
        "name", re.sub(r"[^\w.-]+", "-", path.stem, flags=re.ASCII).strip("-.") or "run"
    )
    return at_scale(values, scale)


def _name_or_table(choice: MethodChoice) -> Any:
    mapping = choice.to_mapping()
    return mapping if len(mapping) > 1 else choice.name


def _one_or_many(tables: list[dict[str, Any]]) -> Any:
    return tables[0] if len(tables) == 1 else tables
