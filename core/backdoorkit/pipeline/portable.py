"""Victims that travel: a folder with a model, its attack and its poison, and what it came from.

A victim's artifact can be copied to another machine. A recipe that names the folder takes model,
attack, training options and seed from it, and the data set by name; defenses and detectors then
start from it.
"""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any, Final

import attrs

from backdoorkit.errors import DamagedArtifactError, InputError
from backdoorkit.hooks.options import option_specs
from backdoorkit.pipeline.recipe import NO_ATTACK
from backdoorkit.pipeline.store import read_artifact

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from backdoorkit.pipeline.store import Artifact

__all__ = ["VictimFolder", "copy_victim", "open_victim"]

_KIND: Final = "victim"


@attrs.frozen(kw_only=True)
class VictimFolder:
    """A victim that lies in a folder of its own, compared with its checksums."""

    path: Path
    #: changes with anything in the folder
    digest: str
    #: the recipe's choices that it was made by: ``data``, ``model``, ``train``, ``attack`` (None
    #: for a model trained on clean data), ``seed``, and ``images``, a digest of its images
    origin: Mapping[str, Any]

    def recipe_values(self, data: Mapping[str, Any] | None) -> dict[str, Any]:
        """Tables of a recipe; ``data`` names the data set where it is another than the victim's.

        How the data are split follows the victim, so that its clean reserve stays clean.

        Raises
        ------
        InputError
            where ``data`` says otherwise.

        """
        own = dict(self.origin["data"])
        table = own
        if data is not None:
            split = _split_options(own)
            for name, value in _split_options(data).items():
                if split.get(name) != value:
                    raise InputError(
                        f"data.{name} comes from the victim ({split.get(name)}), so that its clean "
                        "reserve stays clean; leave it out"
                    )
            table = {**split, **data}
            table.setdefault("name", own["name"])
            if table["name"] == own["name"]:
                table = {**own, **table}
        attack = self.origin["attack"]
        return {
            "data": table,
            "model": dict(self.origin["model"]),
            "train": dict(self.origin["train"]),
            "attacks": [{"name": NO_ATTACK} if attack is None else dict(attack)],
            "seeds": [self.origin["seed"]],
        }


def open_victim(path: Path) -> VictimFolder:
    """The victim in the folder ``path``.

    Raises
    ------
    InputError
        where it is none, is damaged, or cannot be used elsewhere.

    """
    try:
        artifact = read_artifact(path)
    except DamagedArtifactError as error:
        raise InputError(f"victim {path}: {error}") from None
    if artifact.kind != _KIND:
        raise InputError(f"{path} holds no victim but {artifact.kind!r}")
    origin = artifact.facts.get("origin")
    if origin is None:
        raise InputError(
            f"victim {path} does not say what it was made from (its weights were imported, or an "
            "older version made it); name the weights file as model.weights, or train it again"
        )
    return VictimFolder(path=path, digest=artifact.digest, origin=origin)


def copy_victim(artifact: Artifact, folder: Path, name: str) -> Path:
    """Copy a stored victim to ``folder``, under a name made of ``name`` and its key."""
    plain = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.")
    target = folder / f"{plain}-{artifact.key[:8]}"
    if target.exists():
        if open_victim(target).digest == artifact.digest:
            return target
        raise InputError(f"{target} is there already, and is another victim; move it away")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{target.name}.draft"
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(artifact.path, draft)
        draft.rename(target)
    except OSError as error:
        raise InputError(f"victim cannot be copied to {target}: {error.strerror}") from None
    return target


def _split_options(data: Mapping[str, Any]) -> dict[str, Any]:
    from backdoorkit.data.options import DataOptions

    names = {spec.name for spec in option_specs(DataOptions)}
    return {name: value for name, value in data.items() if name in names}
