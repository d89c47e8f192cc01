"""``repair``: a cleaner model file, and what the repair changed. Imports torch."""

from __future__ import annotations

import datetime
import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from safetensors.torch import load_file

import backdoorkit
from backdoorkit.errors import InputError, RunFailedError
from backdoorkit.evaluation import predict
from backdoorkit.handed._preparing import chosen_detectors, prepare
from backdoorkit.handed._report import write_repair_report
from backdoorkit.handed._verdicts import verdicts
from backdoorkit.handed.scanning import facts
from backdoorkit.hooks.info import Kind, Need
from backdoorkit.models.checkpoints import save_weights
from backdoorkit.pipeline.recipe import Recipe
from backdoorkit.pipeline.runner import chosen_device, run_recipe
from backdoorkit.pipeline.victims import chosen
from backdoorkit.pipeline.workshop import Workshop

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from backdoorkit.context import Progress
    from backdoorkit.data.images import ImageSet
    from backdoorkit.handed._preparing import Prepared
    from backdoorkit.handed._verdicts import Verdict
    from backdoorkit.handed.request import Request
    from backdoorkit.hooks.registry import Registry
    from backdoorkit.pipeline.plan import Entry
    from backdoorkit.pipeline.runner import Run
    from backdoorkit.pipeline.store import Store

__all__ = ["Repair", "ReversedTrigger", "repair"]

#: With what these numbers must always be read.
NOTE: Final = (
    "The attacker's trigger is not known, so its success cannot be measured. Shown is the success "
    "of triggers that were reversed from the model before the repair: where theirs falls, a way "
    "into the target class is closed. That is a sign, not a proof: a backdoor that was not "
    "reversed is not seen here."
)


@attrs.frozen(kw_only=True)
class ReversedTrigger:
    """Success of one reversed trigger: the share of other classes' images that it sends to its."""

    label: int
    #: pixels that its mask covers (L1 norm)
    size: float
    #: whether the detector calls it a backdoor's
    flagged: bool
    before: float
    after: float


@attrs.frozen(kw_only=True)
class Repair:
    """What a repair did."""

    prepared: Prepared
    defense: str
    verdicts: tuple[Verdict, ...]
    triggers: tuple[ReversedTrigger, ...]
    #: images on which the repair is judged, and whether it did without them
    judged_on: int
    is_held_out: bool
    #: share of the labelled ones recognised; None without labels
    accuracy_before: float | None
    accuracy_after: float | None
    #: share of the images whose predicted class changed
    changed_predictions: float
    #: share of the weights that changed, and by how much, by layer
    changed_layers: tuple[tuple[str, float], ...]
    details: Mapping[str, Any]
    out: Path
    manifest: Path
    report: Path

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the numbers doubtful."""
        return (*self.prepared.warnings, *(w for v in self.verdicts for w in v.warnings))

    def to_json(self) -> dict[str, Any]:
        """Plain values; the keys are part of the public interface."""
        return {
            **facts(self.prepared),
            "defense": self.defense,
            "detectors": [verdict.to_json() for verdict in self.verdicts],
            "judged_on": {"images": self.judged_on, "held_out": self.is_held_out},
            "accuracy": {"before": self.accuracy_before, "after": self.accuracy_after},
            "changed_predictions": self.changed_predictions,
            "reversed_triggers": [attrs.asdict(trigger) for trigger in self.triggers],
            "note": NOTE,
            "details": dict(self.details),
            "warnings": list(self.warnings),
            "out": str(self.out),
            "manifest": str(self.manifest),
            "report": str(self.report),
        }


def repair(
    request: Request,
    defense: str,
    out: Path,
    registry: Registry,
    store: Store,
    progress: Progress,
    *,
    force: bool = False,
) -> Repair:
    """Repair a model file and write the result to ``out``, with a manifest beside it.

    Raises
    ------
    InputError
        where model or images cannot be used, or ``out`` is there already.
    RunFailedError
        where the defense or a detector failed.

    """
    manifest = _check_places(out, request.model, force=force)
    _check_defense(defense, request, registry)
    detectors = chosen_detectors(request, registry, has_images=True) if request.data else ()
    request = attrs.evolve(request, detectors=detectors)
    prepared = prepare(request, registry, store, "repair")
    values = dict(prepared.recipe) | {
        "defenses": [{"name": defense}],
        "detectors": [{"name": name} for name in detectors],
    }
    request.adjust(values)
    recipe = Recipe.from_mapping(values, registry)
    result = run_recipe(recipe, registry, store, progress=progress)
    found = tuple(verdicts(result.run, request, store.root))
    entry = next(e for e in result.run.plan.entries if e.model_step is not e.victim)
    made = result.run.results[entry.model_step.key]
    if made.artifact is None:
        raise RunFailedError(f"{defense} failed: {made.error}")
    device = chosen_device(request.device)
    workshop = Workshop(
        registry=registry, store=store, device=device, oracle=False, progress=progress
    )
    compared = _compare(workshop, entry, prepared, found)
    repaired = Repair(
        prepared=prepared,
        defense=defense,
        verdicts=found,
        details=made.artifact.facts["details"],
        out=out,
        manifest=manifest,
        report=result.directory / "repair.html",
        **compared,
    )
    _write(repaired, workshop.model(entry.model_step, entry.victim), result.run, entry)
    write_repair_report(repaired, recipe, NOTE)
    return repaired


def _check_places(out: Path, model: Path, *, force: bool) -> Path:
    if out.suffix != ".safetensors":
        raise InputError(f"the repaired model must be called .safetensors, not {out.name!r}")
    if out.exists() and model.exists() and out.samefile(model):
        raise InputError(f"{out} is the model itself; give another name")
    if not out.absolute().parent.is_dir():
        raise InputError(f"there is no folder {out.absolute().parent}; make it first")
    manifest = out.with_suffix(".json")
    for path in (out, manifest):
        if path.exists() and not force:
            raise InputError(f"{path} is there already; give another name, or --force")
    return manifest


def _check_defense(defense: str, request: Request, registry: Registry) -> None:
    needs = registry.find(defense, Kind.DEFENSE).info.needs
    if Need.CLEAN_SAMPLES in needs and request.data is None:
        raise InputError(f"{defense} needs clean images; give them with --data")
    for need in (Need.TRAINING_DATA, Need.TRAINING_CONTROL):
        if need in needs:
            raise InputError(
                f"{defense} needs {need.value}, which does not come with a model; choose another "
                "defense"
            )


# -- what changed ----------------------------------------------------------------------------------


def _compare(
    workshop: Workshop, entry: Entry, prepared: Prepared, found: tuple[Verdict, ...]
) -> dict[str, Any]:
    data = entry.victim.inputs["data"]
    images = workshop.part(data, "reserve")
    used, everything = images, workshop.part(data, "train")
    is_held_out = len(used) < len(everything)
    if is_held_out:
        others = ~torch.isin(everything.ids, used.ids)
        images = everything.subset(others.nonzero().flatten().to(everything.device))
    before = workshop.model(entry.victim, entry.victim)
    after = workshop.model(entry.model_step, entry.victim)
    said = [predict(m, images, device=workshop.device).argmax(dim=1) for m in (before, after)]
    right = [float((labels == images.labels).float().mean()) for labels in said]
    labelled = prepared.images.are_labelled
    return {
        "judged_on": len(images),
        "is_held_out": is_held_out,
        "accuracy_before": right[0] if labelled else None,
        "accuracy_after": right[1] if labelled else None,
        "changed_predictions": float((said[0] != said[1]).float().mean()),
        "changed_layers": _changed_layers(before, after),
        "triggers": _reversed_triggers(before, after, images, said[0], found, workshop.device),
    }


def _changed_layers(before: nn.Module, after: nn.Module) -> tuple[tuple[str, float], ...]:
    """Relative change (L2 norm) of each parameter that changed, the largest first."""
    others = dict(after.named_parameters())
    changes = []
    for name, value in before.named_parameters():
        change, size = (others[name] - value).detach().norm(), value.detach().norm()
        difference = float(change / size.clamp_min(1e-12))
        if difference > 0:
            changes.append((name.removeprefix("network."), difference))
    return tuple(sorted(changes, key=lambda change: change[1], reverse=True))


def _reversed_triggers(
    before: nn.Module,
    after: nn.Module,
    images: ImageSet,
    predicted: Tensor,
    found: tuple[Verdict, ...],
    device: torch.device,
) -> tuple[ReversedTrigger, ...]:
    """Those of the first detector that has any: flagged classes, or else the smallest trigger."""
    for verdict in found:
        stored = {} if verdict.tensors is None else load_file(verdict.tensors)
        if "masks" not in stored or "patterns" not in stored:
            continue
        masks, patterns = stored["masks"].to(device), stored["patterns"].to(device)
        sizes = masks.flatten(1).sum(dim=1)
        flagged = [int(label) for label in verdict.details.get("flagged", [])]
        if verdict.detected and verdict.target is not None and verdict.target not in flagged:
            flagged.append(verdict.target)
        shown = flagged or [int(sizes.argmin())]
        made = []
        for label in shown:
            others = images.subset((predicted != label).nonzero().flatten().to(images.device))
            if not len(others):
                continue
            success = [
                _success(model, others, masks[label], patterns[label], label, device)
                for model in (before, after)
            ]
            made.append(
                ReversedTrigger(
                    label=label,
                    size=float(sizes[label]),
                    flagged=label in flagged,
                    before=success[0],
                    after=success[1],
                )
            )
        return tuple(made)
    return ()


def _success(
    model: nn.Module,
    images: ImageSet,
    mask: Tensor,
    pattern: Tensor,
    label: int,
    device: torch.device,
) -> float:
    logits = predict(
        model, images, device=device, change=lambda batch: torch.lerp(batch, pattern, mask)
    )
    return float((logits.argmax(dim=1) == label).float().mean())


# -- files -----------------------------------------------------------------------------------------


def _write(repaired: Repair, model: nn.Module, run: Run, entry: Entry) -> None:
    """The weights under the names that the given file has, and the manifest beside them."""
    given = repaired.prepared.model
    state = model.state_dict()
    if not given.has_normalization:
        state = {
            name.removeprefix("network."): value
            for name, value in state.items()
            if name not in ("mean", "std")
        }
    mean, std = (model.state_dict()[name].tolist() for name in ("mean", "std"))
    with given.path.open("rb") as stream:
        source = hashlib.file_digest(stream, "sha256").hexdigest()
    try:
        save_weights(repaired.out, state)
        known = {key: value for key, value in repaired.to_json().items() if key != "detectors"}
        manifest = known | {
            "format": "backdoorkit-repaired-1",
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "backdoorkit": backdoorkit.__version__,
            "torch": torch.__version__,
            "device": run.device,
            "source": {"file": given.path.name, "sha256": source},
            "weights": {"file": repaired.out.name, "sha256": _digest(repaired.out)},
            "defense": chosen(entry.model_step.choices["method"]),
            "normalization": {
                "mean": mean,
                "std": std,
                "stored_with_weights": given.has_normalization,
            },
        }
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        repaired.manifest.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{repaired.out} cannot be written: {error.strerror}") from None


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
