"""The detector: is one class much easier to reach from everywhere than the others?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backdoorkit.api import DetectionResult, Detector
from backdoorkit_nc import DetectionConfig
from backdoorkit_nc._neurons import excitation, fit_filter, head_pass, other_classes
from backdoorkit_nc._pictures import CAPTION, draw
from backdoorkit_nc._screening import FlaggedClassesFilter
from backdoorkit_nc._verdict import Verdict, examine, refuse_few_classes
from backdoorkit_nc.filters import filter_tensors

if TYPE_CHECKING:
    from backdoorkit.api import Context, DetectionTask, Structure
    from backdoorkit_nc.filters import InputFilter

__all__ = ["NeuralCleanse"]


class NeuralCleanse(Detector[DetectionConfig]):
    """Reverses a trigger for every class; a class whose trigger is an outlier in size is suspect.

    For every flagged class the result also holds an input filter, for those who want to keep the
    model in use: the units that the reversed trigger excites, and how much is too much.
    """

    def check(self, structure: Structure) -> None:
        refuse_few_classes(structure)

    def run(self, task: DetectionTask, context: Context) -> DetectionResult:
        structure = context.structure(task.model)
        refuse_few_classes(structure)
        verdict = examine(task.model, task.clean, task.num_classes, self.config, context)
        details, tensors = verdict.details(), verdict.tensors()
        filters: dict[int, InputFilter] = {}
        if verdict.flagged and structure.has_head:
            filters, rejected = self._fit_filters(task, verdict, structure, context)
            tensors |= filter_tensors(filters)
            details["filter_reversed_trigger_rejected"] = rejected
        elif verdict.flagged:
            details["filter"] = "none: it watches the inputs of the last layer, which is not found"
        return DetectionResult(
            score=verdict.score,
            threshold=verdict.threshold,
            target=verdict.flagged[0] if verdict.flagged else None,
            input_filter=FlaggedClassesFilter(task.model, structure, filters) if filters else None,
            details=details,
            tensors=tensors,
            figures={"reversed-triggers": draw(verdict)},
            captions={"reversed-triggers": CAPTION},
        )

    def _fit_filters(
        self,
        task: DetectionTask,
        verdict: Verdict,
        structure: Structure,
        context: Context,
    ) -> tuple[dict[int, InputFilter], dict[str, Any]]:
        """A filter per flagged class, and how much of its own reversed trigger it rejects."""
        filters, rejected = {}, {}
        clean, _ = head_pass(task.model, structure, task.clean, context)
        for label in verdict.flagged:
            trigger = verdict.triggers.masks[label], verdict.triggers.patterns[label]
            others = other_classes(task.clean, label)
            triggered, _ = head_pass(task.model, structure, others, context, trigger)
            untouched = clean[(task.clean.labels != label).cpu()]
            watch = fit_filter(
                clean,
                excitation(untouched, triggered),
                share=self.config.filter_share,
                false_positives=self.config.filter_false_positives,
            )
            filters[label] = watch
            rejected[str(label)] = float(watch.rejects(triggered).float().mean())
        return filters, rejected
