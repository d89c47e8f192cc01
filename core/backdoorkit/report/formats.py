"""A report's sections as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backdoorkit.report.sections import Column, Section, Value

__all__ = ["to_csv", "to_latex", "to_markdown"]


def _rows(section: Section, *, seeds: bool) -> Iterator[tuple[Value, ...]]:
    for line in section.lines:
        yield line.values
        if seeds:
            yield from line.seeds


# -- Markdown --------------------------------------------------------------------------------------


def to_markdown(
    title: str, sections: Sequence[Section], notes: Sequence[str], *, seeds: bool
) -> str:
    """All sections with headings, and what a reader must know as a list."""
    parts = [f"# {_markdown(title)}"]
    for section in sections:
        lines = [
            "| " + " | ".join(_markdown(column.title) for column in section.columns) + " |",
            "|" + "".join(" --- |" if c.is_text else " ---: |" for c in section.columns),
        ]
        lines += [
            "| " + " | ".join(_markdown(value.text) for value in values) + " |"
            for values in _rows(section, seeds=seeds)
        ]
        parts += [f"## {_markdown(section.title)}", "\n".join(lines)]
        if section.note:
            parts.append(_markdown(section.note))
    if notes:
        parts.append("\n".join(f"- {_markdown(note)}" for note in notes))
    return "\n\n".join(parts) + "\n"


def _markdown(text: str) -> str:
    """Nothing in it is markup, a line break or the end of a cell."""
    plain = " ".join(text.split())
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", plain) if plain else ""


# -- CSV -------------------------------------------------------------------------------------------


def to_csv(section: Section, *, seeds: bool) -> str:
    """One section, numbers as they are: percent without rounding to two decimals.

    Spreads over seeds, and differences to a published table, are columns of their own.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(name for column in section.columns for name in _csv_names(column))
    for values in _rows(section, seeds=seeds):
        pairs = zip(section.columns, values, strict=True)
        writer.writerow(cell for column, value in pairs for cell in _csv_cells(column, value))
    return stream.getvalue()


def _csv_names(column: Column) -> list[str]:
    if column.source:
        return [column.title, f"{column.title} difference"]
    return [column.name, f"{column.name} spread"] if column.has_spread else [column.name]


def _csv_cells(column: Column, value: Value) -> list[str]:
    if column.is_text:
        # Programs that read tables take what begins like this for a formula.
        return [f"'{value.text}" if value.text[:1] in ("=", "+", "-", "@") else value.text]
    has_words = value.number is None or (value.text[:1].isalpha() or " of " in value.text)
    first = ("" if value.text == "-" else value.text) if has_words else _plain(value.number)
    if column.source:
        return [first, _plain(value.difference)]
    return [first, _plain(value.spread)] if column.has_spread else [first]


def _plain(number: float | None) -> str:
    return "" if number is None else f"{number:.6f}".rstrip("0").rstrip(".")


# -- LaTeX -----------------------------------------------------------------------------------------

_LATEX: Final = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def to_latex(title: str, sections: Sequence[Section], notes: Sequence[str], *, seeds: bool) -> str:
    """Tables for the package booktabs, with the notes as comments above."""
    parts = ["\n".join(f"% {' '.join(line.split())}" for line in (title, *notes))]
    for section in sections:
        layout = "".join("l" if column.is_text else "r" for column in section.columns)
        header = " & ".join(_latex(column.title) for column in section.columns)
        lines = [
            f"\\begin{{tabular}}{{{layout}}}  % {' '.join(section.title.split())}",
            "\\toprule",
            f"{header} \\\\",
            "\\midrule",
            *(
                " & ".join(_latex(value.text) for value in values) + " \\\\"
                for values in _rows(section, seeds=seeds)
            ),
            "\\bottomrule",
            "\\end{tabular}",
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
