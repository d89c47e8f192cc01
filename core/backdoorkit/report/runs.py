"""Runs as they lie in a store: found by name, read without torch, finished or not.

What is read may have been made by others: every file is checked before it is used, and nothing
outside the store is ever shown.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from backdoorkit.errors import DamagedArtifactError, InputError, nearest
from backdoorkit.pipeline.collect import collect
from backdoorkit.pipeline.plan_file import plan_from_json
from backdoorkit.pipeline.record import PLAN_FILE, RECIPE_FILE, RECORD_FILE, TABLE_FILE
from backdoorkit.pipeline.results import NOT_FINISHED, Table
from backdoorkit.pipeline.store import read_artifact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backdoorkit.pipeline.plan import Plan, Step
    from backdoorkit.pipeline.store import Artifact

__all__ = ["StoredRun", "find_run", "read_run"]

#: Digits of a key that name an artifact's folder, and that name an error's file.
_FOLDER_DIGITS: Final = 24
_ERROR_DIGITS: Final = 16
#: No file of a run that is read here is larger.
_LARGEST_FILE: Final = 1 << 28


@attrs.frozen(kw_only=True)
class StoredRun:
    """One run, as far as it came."""

    directory: Path
    #: of the recipe
    name: str
    #: root of the store that the run lies in; None where it was copied out of one
    store: Path | None
    #: versions, command, hardware, steps with their facts and costs
    record: Mapping[str, Any]
    table: Table
    #: the resolved recipe, TOML
    recipe: str
    #: what a reader must know of the run itself
    warnings: tuple[str, ...] = ()
    #: attack, data and model of each victim, by the key of its step
    victim_names: Mapping[str, Mapping[str, str]] = attrs.field(factory=dict)

    def artifact(self, step: Mapping[str, Any], *files: str) -> Artifact | None:
        """What a step of the record made, with ``files`` compared with their checksums.

        None where it is not in the store, or damaged.
        """
        return _artifact(self.store, str(step.get("kind")), str(step.get("key")), *files)


# -- finding ---------------------------------------------------------------------------------------


def find_run(text: str, store: Path) -> Path:
    """The folder of a run: given itself, or by its name in the store, or by its recipe's.

    Raises :class:`InputError` where there is none such, with the nearest name, or several.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        if not _is_run(path):
            raise InputError(
                f"{path} is no run's folder: it has neither {TABLE_FILE} nor {PLAN_FILE}; a run's "
                "folder lies below STORE/runs"
            )
        return path.absolute()
    name = _recipe_name(path) if path.suffix == ".toml" and path.is_file() else path.name
    folder = store / "runs"
    known = sorted(p.name for p in folder.iterdir() if _is_run(p)) if folder.is_dir() else []
    if name in known:
        return (folder / name).absolute()
    named = [run for run in known if run.rpartition("-")[0] == name]
    if len(named) == 1:
        return (folder / named[0]).absolute()
    if named:
        listed = ", ".join(sorted(named, key=lambda run: -_age(folder / run)))
        raise InputError(f"{len(named)} runs are called {name!r}: {listed} (the newest first)")
    raise InputError(_unknown(text, name, known, store))


def _unknown(text: str, name: str, known: list[str], store: Path) -> str:
    if not known:
        return f"no run is called {text!r}: the store {store} has none; give another with --store"
    names = {run.rpartition("-")[0]: run for run in known} | {run: run for run in known}
    close = nearest(name, names)
    advice = f"did you mean {close!r}?" if close else f"it has {', '.join(known[:8])}"
    if not close and len(known) > 8:
        advice += f" and {len(known) - 8} more"
    return f"no run in the store {store} is called {text!r}; {advice}"


def _recipe_name(path: Path) -> str:
    from backdoorkit.pipeline.recipe import read_recipe_file

    return str(read_recipe_file(path)["name"])


def _is_run(path: Path) -> bool:
    return (path / TABLE_FILE).is_file() or (path / PLAN_FILE).is_file()


def _age(path: Path) -> float:
    files = (path / RECORD_FILE, path / PLAN_FILE, path / TABLE_FILE)
    return max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)


# -- reading ---------------------------------------------------------------------------------------


def read_run(directory: Path) -> StoredRun:
    """A run from its folder; one that is not finished as far as its steps are in the store.

    Raises :class:`InputError` that names the file which is damaged.
    """
    directory = directory.absolute()
    store = directory.parent.parent if directory.parent.name == "runs" else None
    plan = _read_json(directory / PLAN_FILE)
    record = _read_json(directory / RECORD_FILE)
    # A run that was started again writes its plan first and its record last.
    is_over = record is not None and (plan is None or plan.get("started") == record.get("started"))
    recipe = directory / RECIPE_FILE
    facts: dict[str, Any] = {
        "directory": directory,
        "store": store,
        "recipe": recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
        "victim_names": {} if plan is None else _victim_names(plan),
    }
    if is_over:
        table = _read_json(directory / TABLE_FILE)
        assert record is not None
        _check_steps(record, directory / RECORD_FILE)
        name = str(record.get("name", directory.name))
        try:
            made = Table.from_json({} if table is None else table)
        except InputError as error:
            raise InputError(f"{directory / TABLE_FILE}: {error}") from None
        return StoredRun(**facts, name=name, record=record, table=made)
    if plan is None:
        raise InputError(f"{directory} has no {RECORD_FILE}: it is no run, or was cut short")
    return _unfinished(facts, plan)


#: What a step of a record must have, whoever wrote it.
_STEP: Final[Mapping[str, type | tuple[type, ...]]] = {
    "kind": str,
    "key": str,
    "label": str,
    "seed": int,
    "inputs": dict,
    "facts": dict,
    "reused": bool,
    "error": (str, type(None)),
}


def _check_steps(record: Mapping[str, Any], path: Path) -> None:
    steps = record.get("steps", [])
    for step in steps if isinstance(steps, list) else [None]:
        wrong = (
            not isinstance(step, dict)
            or any(not isinstance(step.get(key), kind) for key, kind in _STEP.items())
            or any(not isinstance(key, str) for key in step["inputs"].values())
        )
        if wrong:
            raise InputError(f"{path} is damaged: its steps are not those of a run")


def _victim_names(plan: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    entries = [entry for entry in plan.get("entries", []) if isinstance(entry, dict)]
    names = ("attack", "data", "model")
    return {str(e.get("victim")): {name: str(e.get(name)) for name in names} for e in entries}


def _unfinished(facts: dict[str, Any], values: dict[str, Any]) -> StoredRun:
    store, directory = facts["store"], facts["directory"]
    if store is None:
        raise InputError(
            f"{directory} has not finished, and lies in no store, where its steps would be"
        )
    try:
        plan = plan_from_json(values)
    except InputError as error:
        raise InputError(f"{directory / PLAN_FILE}: {error}") from None
    results = {step.key: _outcome(store, directory, step) for step in plan.steps}
    steps = [outcome.to_record() for outcome in results.values()]
    done = sum(outcome.artifact is not None for outcome in results.values())
    table = collect(_Outcomes(plan=plan, results=results))
    warning = (
        f"This run has not finished: {done} of its {len(plan.steps)} steps are done. It is still "
        "going on, or it was interrupted; the same command goes on with it."
    )
    if table.detections:
        warning += " Detectors are rated at the end."
    header = {key: value for key, value in values.items() if key != "entries"}
    return StoredRun(
        **facts,
        name=str(values.get("name", directory.name)),
        record=header | {"steps": steps},
        table=table,
        warnings=(warning,),
    )


@attrs.frozen(kw_only=True)
class _Outcome:
    step: Step
    artifact: Artifact | None
    error: str | None

    def to_record(self) -> dict[str, Any]:
        return {
            "kind": self.step.kind.value,
            "key": self.step.key,
            "label": self.step.label,
            "seed": self.step.seed,
            "inputs": {role: source.key for role, source in self.step.inputs.items()},
            "reused": self.artifact is not None,
            "error": self.error,
            "artifact": None if self.artifact is None else self.artifact.path.name,
            "facts": {} if self.artifact is None else dict(self.artifact.facts),
        }


@attrs.frozen(kw_only=True)
class _Outcomes:
    plan: Plan
    results: Mapping[str, _Outcome]


def _outcome(store: Path, directory: Path, step: Step) -> _Outcome:
    small = ("metrics.json", "verdict.json", "values.json")
    artifact = _artifact(store, step.kind.value, step.key, *small)
    if artifact is not None:
        return _Outcome(step=step, artifact=artifact, error=None)
    path = directory / "errors" / f"{step.kind.value}-{step.key[:_ERROR_DIGITS]}.txt"
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    error = next((line for line in reversed(lines) if line.strip()), NOT_FINISHED)
    return _Outcome(step=step, artifact=None, error=error)


def _artifact(store: Path | None, kind: str, key: str, *files: str) -> Artifact | None:
    # Names come from a file: none of them may lead out of the store.
    if store is None or not (kind.isidentifier() and key.isalnum()):
        return None
    try:
        return read_artifact(store / "artifacts" / kind / key[:_FOLDER_DIGITS], files)
    except DamagedArtifactError:
        return None


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise InputError(f"{path} is too large for a run's file")
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} is damaged: it holds no object")
    return values
