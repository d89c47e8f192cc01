"""Writes the pages of ``docs/methods`` that the registry knows best.

    python docs/generate.py

- ``options.md``: every option of every method here.
- ``presets.md``, below its line of dashes: what each preset sets. What that means stands above the
  line, written by hand.
- ``architectures.md``: which defense or detector runs on which architecture, and why not.

Only distributions of this repository are listed, whatever else is installed.
"""

from __future__ import annotations

import functools
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from backdoorkit.errors import StructureError
from backdoorkit.hooks.info import Kind
from backdoorkit.hooks.options import OptionSpec, option_specs
from backdoorkit.hooks.registry import Registry, load_registry, resolve_config

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from backdoorkit.hooks.registry import Method

ROOT = Path(__file__).parents[1]
METHODS = ROOT / "docs" / "methods"
HEADINGS = {
    Kind.ATTACK: "Attacks",
    Kind.DEFENSE: "Defenses",
    Kind.DETECTOR: "Detectors",
    Kind.ANALYSIS: "Analyses",
    Kind.METRIC: "Metrics",
    Kind.DATASET: "Data sets",
    Kind.MODEL: "Architectures",
    Kind.EXECUTOR: "Executors",
    Kind.OBSERVER: "Observers",
}
DEFENDERS = (Kind.DEFENSE, Kind.DETECTOR)
INTRODUCTION = """# Options of all methods

Made from the installed plugins by `python docs/generate.py`; do not edit. The same is shown by
`backdoorkit plugins show NAME`. On the command line an option is written `--poison-rate`, in a
recipe `poison_rate`.
"""

#: where the generated part of a page begins
LINE = "\n-----\n"
#: presets named after where their values come from, in the order of their columns
SOURCES = ("paper", "official", "backdoorbench")

#: label, method and options
ARCHITECTURES: Mapping[str, tuple[str, dict[str, Any]]] = {
    # Narrow ones are made sooner, and have the same layers.
    "PreAct-ResNet-18": ("preact-resnet-18", {"width": 8}),
    "ResNet-18": ("resnet-18", {"width": 8}),
    "WRN-16-1": ("wrn-16-1", {}),
    "VGG-19-BN": ("vgg-19-bn", {}),
    "ViT": ("vit", {}),
    "SqueezeNet": ("torchvision", {"architecture": "squeezenet1_1"}),
}
#: options that ask for other layers than the defaults do
VARIANTS: Mapping[str, tuple[dict[str, Any], ...]] = {
    "anp": ({"units": "norm"}, {"units": "neuron"}),
    "clp": ({"preset": "official"}, {"proxy": True}),
    "ft": ({"scope": "head"}, {"scope": "norm"}, {"scope": "last-stages"}),
    "nc": ({"repair": "pruning"},),
    "rnp": ({"units": "norm"}, {"units": "neuron"}),
    "tsbd": ({"layers": "conv"}, {"layers": "linear"}),
}
ARCHITECTURES_INTRODUCTION = """# Methods and architectures

Made by `python docs/generate.py`; do not edit. Each defense and detector, with its defaults and
with the options that ask for other layers, was asked whether it can work on each architecture
(images of 3 x 32 x 32, 10 classes), as a run asks before it trains anything. Where the answer is
no, the run ends there, with the reason below. `tests/defenses/test_architectures.py` runs every
other cell, on small networks.

- ViT has layer norms and a single convolution, which embeds patches.
- SqueezeNet (torchvision's `squeezenet1_1`) has no norm layer at all, and its last layer is a
  convolution.
"""


@functools.cache
def ours() -> frozenset[str]:
    """Names of this repository's distributions."""
    files = [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")]
    return frozenset(tomllib.loads(f.read_text(encoding="utf-8"))["project"]["name"] for f in files)


@functools.cache
def registry() -> Registry:
    return load_registry()


def methods(*kinds: Kind) -> Iterator[Method]:
    """This repository's methods of these kinds."""
    for kind in kinds:
        yield from (m for m in registry().methods(kind) if m.distribution in ours())


def pages() -> dict[Path, str]:
    """Every page with its text."""
    return {
        METHODS / "options.md": options_page(),
        METHODS / "presets.md": presets_page(),
        METHODS / "architectures.md": architectures_page(),
    }


def table_row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


# -- options ---------------------------------------------------------------------------------------


def options_page() -> str:
    parts = [INTRODUCTION]
    for kind in Kind:
        sections = ["\n".join(lines(method)) + "\n" for method in methods(kind)]
        if sections:
            parts += [f"## {HEADINGS[kind]}\n", *sections]
    return "\n".join(parts)


def lines(method: Method) -> Iterator[str]:
    """One method's section."""
    info = method.info
    yield f"### {info.name}"
    yield ""
    yield info.summary
    yield ""
    facts = {
        "Distribution": f"`{method.distribution}`",
        "Reference": info.reference,
        "Stage": info.stage.value if info.stage else "",
        "Needs": ", ".join(sorted(info.needs)),
    }
    yield from (f"- {label}: {value}" for label, value in facts.items() if value)
    for name, values in info.presets.items():
        listed = ", ".join(f"`{key} = {plain(value)}`" for key, value in values.items())
        yield f"- Preset `{name}`: {listed or 'the defaults'}"
    yield ""
    specs = option_specs(info.config)
    if not specs:
        yield "No options."
        return
    yield "| option | type | default | symbol | meaning |"
    yield "|---|---|---|---|---|"
    for spec in specs:
        default = spec.default_text if spec.required else f"`{spec.default_text}`"
        yield table_row([f"`{spec.name}`", spec.type_name, default, spec.symbol or "", spec.help])


def plain(value: Any) -> str:
    """A preset's value as in a recipe."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(list(value)) if isinstance(value, tuple) else str(value)


# -- presets ---------------------------------------------------------------------------------------


def presets_page() -> str:
    """The hand-written part as it is, and the tables."""
    written = (METHODS / "presets.md").read_text(encoding="utf-8").split(LINE)[0]
    parts = [written + LINE]
    for kind in (Kind.DEFENSE, Kind.DETECTOR, Kind.ATTACK):
        parts.append(f"## {HEADINGS[kind]}\n")
        for method in methods(kind):
            if method.info.presets:
                parts.append(f"### {method.name}\n\n" + "\n".join(preset_table(method)) + "\n")
    return "\n".join(parts)


def preset_table(method: Method) -> Iterator[str]:
    """Options on which a preset differs from the defaults; one column for each preset."""
    names = [name for name in SOURCES if name in method.info.presets]
    names += [name for name in method.info.presets if name not in SOURCES]
    configs = [resolve_config(method, {"preset": name}) for name in names]
    rows = [
        [f"`{spec.name}`", f"`{spec.default_text}`", *(f"`{text}`" for text in texts)]
        for spec in option_specs(method.info.config)
        if set(texts := [value_text(spec, getattr(c, spec.name)) for c in configs])
        != {spec.default_text}
    ]
    if not rows:
        yield f"{' and '.join(f'`{name}`' for name in names)}: the defaults."
        return
    yield table_row(["option", "default", *(f"`{name}`" for name in names)])
    yield "|---" * (2 + len(names)) + "|"
    yield from map(table_row, rows)


def value_text(spec: OptionSpec, value: Any) -> str:
    """A value as written in a recipe."""
    return attrs.evolve(spec, default=value).default_text


# -- architectures ---------------------------------------------------------------------------------


def asked() -> Iterator[tuple[Method, dict[str, Any]]]:
    """Every defense and detector with its defaults, then with its variants."""
    for method in methods(*DEFENDERS):
        yield method, {}
        names = {spec.name for spec in option_specs(method.info.config)}
        for values in VARIANTS.get(method.name, ()):
            if set(values) <= names | {"preset"}:
                yield method, values


def asked_label(method: Method, values: Mapping[str, Any]) -> str:
    name = f"{method.name} (detector)" if method.kind is Kind.DETECTOR else method.name
    options = ", ".join(f"`{key} = {plain(value)}`" for key, value in values.items())
    return f"{name}, {options}" if options else name


def refusal(method: Method, values: Mapping[str, Any], structure: Any) -> str | None:
    """Why the method does not work on such a network, or None."""
    try:
        registry().create(method, resolve_config(method, values)).check(structure)
    except StructureError as error:
        return str(error)
    return None


def architectures_page() -> str:
    from backdoorkit.models.normalized import NormalizedModel
    from backdoorkit.models.structure import find_structure

    shape, classes = (3, 32, 32), 10
    structures = []
    for name, options in ARCHITECTURES.values():
        method = registry().find(name, Kind.MODEL)
        network = registry().create(method, resolve_config(method, options)).build(shape, classes)
        structures.append(find_structure(NormalizedModel(network, [0.5] * 3, [0.25] * 3), shape))
    reasons: dict[str, int] = {}
    rows = []
    for method, values in asked():
        cells = [asked_label(method, values)]
        for structure in structures:
            reason = refusal(method, values, structure)
            number = None if reason is None else reasons.setdefault(reason, len(reasons) + 1)
            cells.append("runs" if number is None else f"refused ({number})")
        rows.append(table_row(cells))
    header = [table_row(["method", *ARCHITECTURES]), "|---" * (1 + len(ARCHITECTURES)) + "|"]
    listed = [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join([ARCHITECTURES_INTRODUCTION, *header, *rows, "", "Reasons:", "", *listed, ""])


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")
