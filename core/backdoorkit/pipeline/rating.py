"""Detectors against the truth: over the models of a run, and over samples and inputs of a victim.

Computed from what is in the store, after all steps, so that a detector whose verdict failed on one
model is rated on the others.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import attrs
import torch
from safetensors.torch import load_file
from torch import Tensor

from backdoorkit.data.poison import SampleKind
from backdoorkit.detection import DetectionScores
from backdoorkit.hooks.info import Need
from backdoorkit.hooks.shared_options import LabelMapping
from backdoorkit.pipeline.attacks import part_choices
from backdoorkit.pipeline.measuring import poison_record
from backdoorkit.pipeline.recipe import NO_ATTACK
from backdoorkit.pipeline.results import ALL_ATTACKS, Rating

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backdoorkit.pipeline.plan import Entry, Step
    from backdoorkit.pipeline.runner import Run
    from backdoorkit.pipeline.store import Artifact
    from backdoorkit.pipeline.workshop import Workshop

__all__ = ["rate"]

log = logging.getLogger(__name__)


def rate(run: Run, workshop: Workshop) -> tuple[Rating, ...]:
    """What the recipe's detection metrics say of its detectors; nothing where it has none."""
    metrics = [m for m in run.recipe.metrics if Need.VERDICTS in m.method.info.needs]
    if not metrics:
        return ()
    groups: dict[tuple[str, str, str], list[tuple[Entry, Artifact]]] = {}
    for entry in run.plan.entries:
        if entry.detect is None:
            continue
        artifact = run.results[entry.detect.key].artifact
        if artifact is not None:
            names = entry.data, entry.model, entry.defense
            groups.setdefault(names, []).append((entry, artifact))
    ratings = []
    for (data, model, detector), found in groups.items():
        models = _models(found)
        if models is not None:
            plain = Rating(data=data, model=model, attack=ALL_ATTACKS, detector=detector)
            ratings.append(_rated(plain, models, metrics, workshop))
        for entry, artifact in found:
            for scores in _scores_of_one(entry, artifact, workshop):
                plain = Rating(
                    data=data,
                    model=model,
                    attack=entry.attack,
                    detector=detector,
                    seed=entry.seed,
                )
                ratings.append(_rated(plain, scores, metrics, workshop))
    return tuple(ratings)


def _rated(
    plain: Rating, scores: DetectionScores, metrics: Sequence[Any], workshop: Workshop
) -> Rating:
    values: dict[str, Any] = {}
    try:
        for choice in metrics:
            metric = workshop.registry.create(choice.method, choice.config)
            for column, value in metric.rate(scores).items():
                values[column] = {"metric": choice.name, **attrs.asdict(value)}
    except Exception as error:  # a metric's fault costs its row, not the run
        log.warning("failed: rating of %s: %r", plain.detector, error, exc_info=error)
        return attrs.evolve(plain, of=scores.of, error=" ".join(str(error).split()) or repr(error))
    return attrs.evolve(plain, of=scores.of, values=values)


# -- models ----------------------------------------------------------------------------------------


def _models(found: Sequence[tuple[Entry, Artifact]]) -> DetectionScores | None:
    """Scores of all models, of all seeds; None below two models, or without a clean one."""
    verdicts = [(entry, artifact.read_json("verdict.json")) for entry, artifact in found]
    verdicts = [(entry, verdict) for entry, verdict in verdicts if verdict["score"] is not None]
    positive = torch.tensor([not _is_clean(entry.victim) for entry, _ in verdicts])
    if len(verdicts) < 2 or bool(positive.all()):
        return None
    flags = [verdict["detected"] for _, verdict in verdicts]
    targets = [_target(entry.victim) for entry, _ in verdicts]
    named = [
        target is not None and verdict["target"] == target
        for target, (_, verdict) in zip(targets, verdicts, strict=True)
    ]
    return DetectionScores(
        of="models",
        scores=torch.tensor([verdict["score"] for _, verdict in verdicts], dtype=torch.float64),
        positive=positive,
        flagged=None if None in flags else torch.tensor(flags),
        named=torch.tensor(named) if any(target is not None for target in targets) else None,
    )


def _is_clean(victim: Step) -> bool:
    return bool(victim.choices["attack"].name == NO_ATTACK)


def _target(victim: Step) -> int | None:
    """The one class that the attack leads to; None where there is no such class."""
    if _is_clean(victim):
        return None
    configs = [part.config for part in part_choices(victim.choices["attack"])]
    one = all(config.label_map is not LabelMapping.ALL_TO_ALL for config in configs)
    targets = {config.target for config in configs}
    return int(targets.pop()) if one and len(targets) == 1 else None


# -- samples and inputs ----------------------------------------------------------------------------


def _scores_of_one(
    entry: Entry, artifact: Artifact, workshop: Workshop
) -> Iterator[DetectionScores]:
    if "samples.safetensors" in artifact.files:
        kept = load_file(artifact.file("samples.safetensors"))
        kinds = _kinds(entry, len(kept["scores"]), workshop)
        yield DetectionScores(
            of="training samples",
            scores=kept["scores"].double(),
            positive=kinds == SampleKind.POISONED,
            flagged=kept.get("flagged"),
            covers=kinds == SampleKind.COVER,
        )
    if "screening.safetensors" in artifact.files:
        kept = load_file(artifact.file("screening.safetensors"))
        threshold = artifact.read_json("verdict.json")["filter_threshold"]
        triggered = kept.get("triggered.scores", torch.zeros(0, dtype=torch.float64))
        if "triggered.counts" in kept:
            triggered = triggered[kept["triggered.counts"]]
        scores = torch.cat([kept["clean.scores"], triggered])
        yield DetectionScores(
            of="inputs",
            scores=scores,
            positive=torch.arange(len(scores)) >= len(kept["clean.scores"]),
            flagged=scores > threshold,
        )


def _kinds(entry: Entry, count: int, workshop: Workshop) -> Tensor:
    """Kind of each training sample; all are clean where nothing was poisoned."""
    assert entry.detect is not None
    record = poison_record(workshop, entry.victim, entry.detect.inputs.get("frozen"))
    return torch.zeros(count, dtype=torch.uint8) if record is None else record.kinds
