"""What the commands for a model that was handed over share: options, and lines of output."""

from __future__ import annotations

import functools
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from backdoorkit.cli._overrides import parse_assignment, set_value
from backdoorkit.errors import InputError
from backdoorkit.handed.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from backdoorkit.hooks.registry import Registry

__all__ = [
    "DETECTED",
    "adjusting",
    "copied_report",
    "described",
    "file_options",
    "image_options",
    "make_request",
    "run_options",
    "show",
    "warn_of_broken_plugins",
]

log = logging.getLogger(__name__)

#: Exit code where a backdoor was detected and the command was asked to end so.
DETECTED: Final = 4
_DEFAULT_STORE: Final = "backdoorkit-runs"
F = TypeVar("F", bound="Callable[..., Any]")


def file_options(command: F) -> F:
    """What is known about the model."""
    return _with(
        command,
        click.option(
            "--arch",
            "architecture",
            metavar="NAME",
            help="Architecture, or package.module:function that makes the network.  [default: told "
            "from the weights]",
        ),
        click.option(
            "--classes",
            type=click.IntRange(min=2),
            help="Number of classes.  [default: told from the weights]",
        ),
        click.option(
            "--normalization",
            metavar="HOW",
            help="none, imagenet, data (mean and standard deviation of the images) or MEAN/STD, "
            "such as 0.49,0.48,0.45/0.25,0.24,0.26.  [default: what suits the labelled images "
            "best]",
        ),
    )


def image_options(command: F) -> F:
    """The clean images."""
    return _with(
        command,
        click.option(
            "--data",
            metavar="WHERE",
            help="Clean images: a folder of pictures (in one folder per class, or without), "
            "Parquet files, or the name of a data set.",
        ),
        click.option(
            "--labels",
            type=click.Path(dir_okay=False, path_type=Path),
            help="CSV file with lines FILE,LABEL for pictures that are not in class folders.",
        ),
        click.option(
            "--class-names",
            metavar="NAME,...",
            help="Names of the class folders in the order of the model's classes.",
        ),
        click.option("--images", type=click.IntRange(min=1), help="Use this many.  [default: all]"),
        click.option(
            "--size",
            type=click.IntRange(min=1),
            help="Side in pixels that the model takes.  [default: as the images are]",
        ),
        click.option(
            "--convert",
            is_flag=True,
            help="Bring grey pictures to RGB, or coloured ones to grey, as the model wants it.",
        ),
    )


def run_options(command: F) -> F:
    """How it is carried out."""
    return _with(
        command,
        click.option(
            "--set",
            "assignments",
            metavar="PATH=VALUE",
            multiple=True,
            help="Set any key of the recipe, such as detectors[0].inversion_steps=100 or "
            "model.width=32. Repeatable.",
        ),
        click.option("--seed", type=click.IntRange(min=0), default=0, help="[default 0]"),
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            help="Processor threads.  [default one per core]",
        ),
        click.option(
            "--device", metavar="DEVICE", default="auto", help="auto, cpu, cuda or cuda:N."
        ),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        click.option(
            "--store",
            type=click.Path(file_okay=False, path_type=Path),
            default=_DEFAULT_STORE,
            envvar="BACKDOORKIT_STORE",
            help=f"Where results are kept and found again.  [default {_DEFAULT_STORE}]",
        ),
    )


def _with(command: F, *options: Callable[[F], F]) -> F:
    # In the help they come in the order in which they stand here.
    return functools.reduce(lambda made, option: option(made), reversed(options), command)


def make_request(model: Path, options: Mapping[str, Any], **more: Any) -> Request:
    """What the options above say."""
    names = options["class_names"]
    return Request(
        model=model,
        architecture=options["architecture"],
        data=options["data"],
        labels=options["labels"],
        class_names=() if names is None else tuple(n.strip() for n in names.split(",")),
        num_classes=options["classes"],
        size=options["size"],
        images=options["images"],
        held_out=options.get("hold_out", 0.0),
        convert=options["convert"],
        normalization=options["normalization"],
        seed=options["seed"],
        device=options["device"],
        threads=options["threads"],
        adjust=adjusting(options["assignments"]),
        **more,
    )


def adjusting(assignments: Sequence[str]) -> Callable[[dict[str, Any]], None]:
    """Carries out the ``--set`` of a command line; raises at once where one is malformed."""
    parsed = [parse_assignment(text) for text in assignments]

    def adjust(values: dict[str, Any]) -> None:
        for path, value in parsed:
            set_value(values, path, value)

    return adjust


def described(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Lines that say what model and images are taken for."""
    model, images = facts["model"], facts["images"]
    options = {k: v for k, v in model["architecture"].items() if k not in ("name", "target")}
    name = model["architecture"].get("target", model["architecture"]["name"])
    shown = ", ".join(f"{key} {value}" for key, value in options.items())
    told = " (told from the weights)" if model["told_from_weights"] else ""
    yield (
        "model",
        f"{Path(model['file']).name}: {name}{f' ({shown})' if shown else ''}{told}, "
        f"{model['num_classes']} classes",
    )
    if images["count"]:
        size = " x ".join(map(str, model["image_shape"]))
        known = "labelled" if images["labelled"] else "without labels"
        yield "images", f"{images['count']} of {size}, {known} ({images['source']})"
    else:
        yield "images", "none"
    wanted = model["normalization"]
    how = wanted if isinstance(wanted, str) else "mean and std"
    yield "normalisation", f"{how} ({model['normalization_source']})"
    if images["accuracy"] is not None:
        tried = ", ".join(
            f"{100 * share:.2f} % with {name}"
            for name, share in images["accuracy_by_normalization"].items()
        )
        yield "recognised", tried


def show(lines: Sequence[tuple[str, str]]) -> None:
    """Print names and what belongs to them, aligned."""
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        click.echo(f"{name.ljust(width)}  {text}")


def copied_report(made: Path, wanted: Path | None) -> Path:
    """The report, where the user wants it."""
    if wanted is None:
        return made
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, wanted)
    except OSError as error:
        raise InputError(f"the report cannot be written to {wanted}: {error.strerror}") from None
    return wanted


def warn_of_broken_plugins(registry: Registry) -> None:
    """One line for each plugin that cannot be used."""
    for record in registry.plugins:
        if record.error and record.state != "blocked":
            log.warning("plugin %s is %s: %s", record.label, record.state, record.error)
